// Package validate checks deploy/ against the rules of the programs that read it, and against rules
// of this repository.
//
// Compose files are loaded as docker compose loads them. Every object that Kustomize builds is
// decoded, given defaults and validated by the API server's own code. The additional rules are:
// limits, probes, no root, and no reference to something that does not exist.
//
// Validators that work from the published schemas cannot replace the API server's code. kubeconform
// accepts a selector that differs from its template's labels, a limit below the request, a mount of
// a volume that does not exist, and a rolling update that can move nothing; TestKustomize has all
// of them. kubectl-validate imports the same modules.
//
// It is a module of its own, so that Kubernetes stays out of Millrace's dependencies.
// scripts/deploy-check runs it.
package validate

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// mayBeRoot are the services that may run as root: one that only changes the owner of a volume.
var mayBeRoot = map[string]bool{"s3-volume": true}

// checkCompose loads a file as docker compose does, with its checks of schema and consistency, and
// applies the rules to its services. It returns the number of services and the faults.
func checkCompose(path string) (int, []string, error) {
	options, err := cli.NewProjectOptions([]string{path},
		cli.WithEnv([]string{"SECRETS_GID=1000"}), cli.WithResolvedPaths(true), cli.WithConsistency(true))
	if err != nil {
		return 0, nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return 0, nil, err
	}
	var faults []string
	// All faults are collected, so that one run shows everything that is to be corrected.
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }

	// Secrets by name, and volumes as "volume NAME". What no service uses is a leftover, or a
	// misspelt name.
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(project.Services)) {
		checkService(project, project.Services[name], used, func(format string, args ...any) {
			add("service "+name+": "+format, args...)
		})
	}
	for _, name := range slices.Sorted(maps.Keys(project.Secrets)) {
		if !used[name] {
			add("secret %s: no service uses it", name)
		}
		if missing(project.Secrets[name].File) {
			add("secret %s: file %s does not exist", name, project.Secrets[name].File)
		}
	}
	for name := range project.Volumes {
		if !used["volume "+name] {
			add("volume %s: no service uses it", name)
		}
	}
	return len(project.Services), faults, nil
}

// checkService applies the rules to one service. It records in used which secrets and volumes are
// used.
//
// The rules are: mounted files exist, the image has a version, memory and CPU and processes are
// limited, privileges are dropped, the user is not root, there is a health check, and the service
// starts only after those that it depends on.
func checkService(project *types.Project, s types.ServiceConfig, used map[string]bool, add func(string, ...any)) {
	for _, secret := range s.Secrets {
		used[secret.Source] = true
	}
	for _, v := range s.Volumes {
		used["volume "+v.Source] = true
		if v.Type == types.VolumeTypeBind && missing(v.Source) {
			add("mounts %s, which does not exist", v.Source)
		}
	}
	if s.Image == "" || !pinned(s.Image) {
		add("image %q has no version", s.Image)
	}
	if s.Build != nil && missing(filepath.Join(s.Build.Context, s.Build.Dockerfile)) {
		add("its Dockerfile does not exist")
	}
	for _, script := range slices.Concat(s.Entrypoint, s.Command) {
		checkScript(s, script, add)
	}
	if s.Deploy == nil || s.Deploy.Resources.Limits == nil || s.Deploy.Resources.Limits.MemoryBytes == 0 ||
		s.Deploy.Resources.Limits.NanoCPUs == 0 || s.Deploy.Resources.Limits.Pids == 0 {
		add("no limits of CPU, memory and processes")
	}
	if !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Privileged {
		add("keeps privileges: set cap_drop ALL and no-new-privileges")
	}
	user, _, _ := strings.Cut(s.User, ":")
	if (user == "" || user == "0" || user == "root") && !mayBeRoot[s.Name] {
		add("runs as root: set a user")
	}
	// A service that is restarted only on failure runs once, such as one that creates topics. It
	// has nothing to check while it runs.
	once := strings.HasPrefix(s.Restart, "on-failure")
	if !once && (s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) == 0) {
		add("no health check")
	}
	for other, dependency := range s.DependsOn {
		target := project.Services[other]
		// A service that shares the network of another one may start before that is healthy.
		switch runsOnce := strings.HasPrefix(target.Restart, "on-failure"); {
		case runsOnce && dependency.Condition != types.ServiceConditionCompletedSuccessfully:
			add("depends on %s, which runs once: wait until it has completed", other)
		case !runsOnce && dependency.Condition != types.ServiceConditionHealthy && s.NetworkMode != "service:"+other:
			add("depends on %s: wait until it is healthy", other)
		}
	}
	for key, value := range s.Environment {
		checkVariable(s, key, value, add)
	}
}

// checkVariable reports secrets in the environment, and names of secret files that the service does
// not have. Docker shows the environment to everyone who may inspect the container. A nil value is
// taken from the environment of docker compose.
func checkVariable(s types.ServiceConfig, key string, value *string, add func(string, ...any)) {
	if value == nil {
		return
	}
	if strings.HasSuffix(key, "PASSWORD") || strings.HasSuffix(key, "SECRET_KEY") || strings.HasSuffix(key, "TOKEN") {
		add("%s contains a secret: use a file", key)
	}
	name, isSecret := strings.CutPrefix(*value, "/run/secrets/")
	if isSecret && !slices.ContainsFunc(s.Secrets, func(c types.ServiceSecretConfig) bool { return c.Source == name }) {
		add("%s refers to the secret %s, which the service does not have", key, name)
	}
}

// checkScript reports scripts of this repository that are not mounted or not executable. Other
// words of a command are ignored. Files with an extension are arguments of a program, and so need
// not be executable.
func checkScript(s types.ServiceConfig, path string, add func(string, ...any)) {
	if !strings.HasPrefix(path, "/etc/millrace/") && path != "/etc/trino/start" {
		return
	}
	for _, v := range s.Volumes {
		rest, ok := strings.CutPrefix(path, v.Target)
		if !ok || v.Type != types.VolumeTypeBind {
			continue
		}
		info, err := os.Stat(v.Source + rest)
		if err == nil && filepath.Ext(path) == "" && info.Mode()&0o111 == 0 {
			add("%s is not executable", v.Source+rest)
		}
		if err == nil {
			return
		}
	}
	add("%s is not mounted or does not exist", path)
}

// pinned reports whether an image has a tag other than latest. The registry before the last slash
// may have a colon too, for its port.
func pinned(image string) bool {
	_, tag, ok := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	return ok && tag != "latest"
}

// missing reports whether a mounted path does not exist.
func missing(path string) bool {
	_, err := os.Stat(path)
	return err != nil && os.IsNotExist(err) || path == "" || !fs.ValidPath(strings.TrimPrefix(filepath.ToSlash(path), "/"))
}
