// Package deploy_test checks the configuration of the deployments against the program: each role
// accepts the configuration that compose and Kubernetes give it. Package validate checks the
// manifests against their schemas.
package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/config"
)

// process is one container of Millrace.
type process struct {
	where   string
	command []string
	env     map[string]string
	config  string          // the configuration file
	secrets map[string]bool // names of the files in /run/secrets
	ports   []string        // declared, published or probed
	memory  string          // its limit
	disk    string          // the size of the volume data, if it is limited
}

// role returns the roles that it serves. It is empty for migrate.
func (p process) role() string {
	if i := slices.Index(p.command, "--role"); i >= 0 {
		return p.command[i+1]
	}
	return ""
}

func TestEachRoleHasOneProcessEverywhere(t *testing.T) {
	t.Parallel()
	for where, processes := range deployments(t) {
		var roles []string
		for _, p := range processes {
			if p.role() != "" {
				roles = append(roles, p.role())
			}
		}
		slices.Sort(roles)
		if want := []string{"admin", "commands", "features", "iceberg", "lake", "query", "relay",
			"tracking", "views"}; !slices.Equal(roles, want) {
			t.Errorf("%s has the roles %v, want %v", where, roles, want)
		}
	}
}

func TestConfigurationIsAccepted(t *testing.T) {
	t.Parallel()
	for _, p := range all(t) {
		t.Run(p.where, func(t *testing.T) {
			t.Parallel()
			c := load(t, p)
			if err := c.Check(); err != nil {
				t.Error(err)
			}
			if c.Auth.Tokens == "" || c.TLS.Cert == "" {
				t.Error("the doors are beyond loopback: they want tokens and TLS")
			}
			https := func(url string) bool { return strings.HasPrefix(url, "https://") }
			verified := func(url string) bool { return strings.Contains(url, "sslmode=verify-full") }
			for key, enabled := range map[string]bool{
				"kafka.tls":            c.Kafka.TLS.Enabled,
				"redis.tls":            c.Redis.TLS.Enabled,
				"registry.url":         https(c.Registry.URL) || c.Registry.URL == "" && p.role() == "tracking",
				"search.elasticsearch": https(c.Search.Elasticsearch),
				"clickhouse.url":       https(c.ClickHouse.URL),
				"lake.s3.endpoint":     https(c.Lake.S3.Endpoint),
				"store.postgres":       verified(c.Store.Postgres),
				"lake.catalog":         verified(c.Lake.Catalog),
			} {
				if !enabled {
					t.Errorf("%s: the connection is not encrypted", key)
				}
			}
		})
	}
}

// TestEachRoleHasOnlyItsSecrets checks that each role has exactly the secrets that its
// configuration names.
func TestEachRoleHasOnlyItsSecrets(t *testing.T) {
	t.Parallel()
	for _, p := range all(t) {
		t.Run(p.where, func(t *testing.T) {
			t.Parallel()
			c := load(t, p)
			named := map[string]bool{"ca.crt": true}
			for _, path := range []string{c.TLS.Cert, c.TLS.Key, c.Auth.Tokens} {
				named[filepath.Base(path)] = true
			}
			if p.role() == "tracking" {
				named[filepath.Base(c.Tracking.Keys)] = true
			}
			for key, value := range p.env {
				if strings.HasSuffix(key, "_FILE") {
					named[filepath.Base(value)] = true
				}
			}
			// By the configuration file, each service has a password of its own.
			if p.role() == "commands" {
				password := strings.TrimSuffix(filepath.Base(c.Store.Password.String()), "}") // of {file: PATH}
				for _, a := range event.Aggregates() {
					named[strings.ReplaceAll(password, "{service}", a.Service)] = true
				}
			}
			for name := range named {
				if !p.secrets[name] {
					t.Errorf("it names the secret %s, which it is not given", name)
				}
			}
			for name := range p.secrets {
				if !named[name] {
					t.Errorf("it is given the secret %s, which it does not name", name)
				}
			}
		})
	}
}

// TestPortsAreThoseOfTheConfiguration checks that each role has exactly the ports of its listeners.
func TestPortsAreThoseOfTheConfiguration(t *testing.T) {
	t.Parallel()
	for _, p := range all(t) {
		c := load(t, p)
		admin := port(t, c.Admin.Addr)
		var want []string
		switch p.role() {
		case "commands", "query", "iceberg":
			want = []string{port(t, c.Addr)}
		case "features":
			want = []string{port(t, c.Addr), port(t, c.Features.FeastAddr), port(t, c.Features.FeastOfflineAddr)}
		case "tracking":
			want = []string{port(t, c.Tracking.Addr)}
		}
		slices.Sort(want)
		have := slices.DeleteFunc(slices.Clone(p.ports), func(n string) bool { return n == admin })
		slices.Sort(have)
		if !slices.Equal(have, want) {
			t.Errorf("%s: besides admin.addr's, its ports are %v, want %v", p.where, have, want)
		}
	}
}

// TestVectorsFitTheirMemory checks that the limit of the vectors in memory is reached before that of
// the container, and that the snapshots fit their volume.
func TestVectorsFitTheirMemory(t *testing.T) {
	t.Parallel()
	checked := 0
	for _, p := range all(t) {
		if p.role() != "features" {
			continue
		}
		checked++
		facts := load(t, p).Features.Online.MaxBytes
		// The process needs half as much again. The rest is for the batches of the tables.
		heap, memory := size(t, p.env["GOMEMLIMIT"]), size(t, p.memory)
		if want := facts*3/2 + 512<<20; heap < want {
			t.Errorf("%s: GOMEMLIMIT is %d, want at least %d for features.online.max_bytes", p.where, heap, want)
		}
		if want := heap + 512<<20; memory < want { // librdkafka's memory is not the heap's
			t.Errorf("%s: its memory is %d, want at least %d for GOMEMLIMIT", p.where, memory, want)
		}
		if p.disk != "" && size(t, p.disk) < 3*facts { // a snapshot, the next one, and a damaged one
			t.Errorf("%s: its volume has %s, want three times features.online.max_bytes", p.where, p.disk)
		}
		if c := load(t, p); c.Data != "/var/lib/millrace" {
			t.Errorf("%s: data is %s, want the folder of its volume", p.where, c.Data)
		}
	}
	if checked != len(deployments(t)) {
		t.Errorf("%d processes were checked, want one per deployment", checked)
	}
}

// size parses a number of bytes, as Compose, Kubernetes or Go's runtime writes it: 2G, 2Gi, 2GiB.
func size(t *testing.T, text string) int64 {
	t.Helper()
	digits := strings.TrimRight(text, "MGiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, ok := map[string]int{"M": 20, "G": 30}[strings.TrimRight(text[len(digits):], "iB")]
	if err != nil || !ok {
		t.Fatalf("%q is not a number of bytes with M or G", text)
	}
	return n << shift
}

// TestSecretsAreCreatedOnce checks that the script creates every secret file that a manifest uses,
// and that it keeps existing ones.
func TestSecretsAreCreatedOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	made := makeSecrets(t, dir)
	for _, p := range all(t) {
		for name := range p.secrets {
			if _, ok := made[name]; !ok {
				t.Errorf("%s: compose/secrets/make does not make %s", p.where, name)
			}
		}
	}
	if _, err := tracking.ParseSources(made["tracking_keys"]); err != nil {
		t.Errorf("tracking_keys: %v", err)
	}
	again := makeSecrets(t, dir)
	for name, text := range made {
		switch name { // salted, so different each time
		case "registry_readers", "registry_writers", "trino_users":
			continue
		}
		if !bytes.Equal(text, again[name]) {
			t.Errorf("a second run changed %s", name)
		}
	}
	for name := range made {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&0o007 != 0 {
			t.Errorf("everyone may read %s: %v", name, info.Mode())
		}
	}
}

func makeSecrets(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "compose/secrets/make", dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(out) > 0 {
		t.Errorf("it prints %q, and should print nothing that could be a secret", out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	for _, e := range entries {
		made[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// TestImageIsBuiltFromEveryPackage checks that .dockerignore lets every package of the program
// through.
func TestImageIsBuiltFromEveryPackage(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}}",
		"../cmd/millrace").Output()
	if err != nil {
		t.Fatal(err)
	}
	ignore, err := os.ReadFile("Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if rest, ok := strings.CutPrefix(pkg, "github.com/millrace/millrace/"); ok {
			if top, _, _ := strings.Cut(rest, "/"); !strings.Contains(string(ignore), "\n!"+top+"\n") {
				t.Errorf("Dockerfile.dockerignore keeps %s out of the image's build", top)
			}
		}
	}
}

func load(t *testing.T, p process) config.Config {
	t.Helper()
	c, err := config.Load(p.config, func(name string) (string, bool) { v, ok := p.env[name]; return v, ok })
	if err != nil {
		t.Fatalf("%s: %v", p.where, err)
	}
	return c
}

func all(t *testing.T) []process {
	t.Helper()
	d := deployments(t)
	var processes []process
	for _, where := range slices.Sorted(maps.Keys(d)) {
		processes = append(processes, d[where]...)
	}
	return processes
}

// deployments returns Millrace's containers in compose and in each overlay of Kubernetes.
func deployments(t *testing.T) map[string][]process {
	t.Helper()
	return map[string][]process{"compose": fromCompose(t), "example": fromKubernetes(t, "base/millrace.yaml", ""),
		"managed": fromKubernetes(t, "overlays/managed/millrace.yaml", "overlays/managed/stores.yaml")}
}

func fromCompose(t *testing.T) []process {
	t.Helper()
	var file struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
			Secrets     []any
			Ports       []string
			HealthCheck struct{ Test []string }
			Deploy      struct {
				Resources struct{ Limits struct{ Memory string } }
			}
		}
	}
	read(t, "compose/compose.yaml", &file)
	var processes []process
	for name, s := range file.Services {
		if !strings.HasPrefix(s.Image, "millrace:") {
			continue
		}
		p := process{where: "compose: " + name, command: s.Command, env: s.Environment, config: "compose/millrace.yaml",
			secrets: map[string]bool{}, memory: s.Deploy.Resources.Limits.Memory}
		for _, secret := range s.Secrets {
			p.secrets[fmt.Sprint(secret)] = true
		}
		for _, mapping := range s.Ports {
			p.ports = append(p.ports, mapping[strings.LastIndex(mapping, ":")+1:])
		}
		for _, word := range s.HealthCheck.Test {
			if rest, ok := strings.CutPrefix(word, "https://localhost:"); ok {
				n, _, _ := strings.Cut(rest, "/")
				p.ports = append(p.ports, n)
			}
		}
		processes = append(processes, p)
	}
	return processes
}

type workload struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Args  []string
					Env   []struct{ Name, Value string }
					Ports []struct {
						ContainerPort int `yaml:"containerPort"`
					}
					Resources struct{ Limits struct{ Memory string } }
				}
				Volumes []struct {
					Name     string
					EmptyDir struct {
						SizeLimit string `yaml:"sizeLimit"`
					} `yaml:"emptyDir"`
					Projected struct {
						Sources []struct{ Secret struct{ Name string } }
					}
				}
			}
		}
	}
}

// fromKubernetes reads the manifests of the roles, and the changes of an overlay to their
// environment.
func fromKubernetes(t *testing.T, file, patch string) []process {
	t.Helper()
	var generated struct {
		SecretGenerator []struct {
			Name  string
			Files []string
		} `yaml:"secretGenerator"`
	}
	read(t, "kubernetes/overlays/example/secrets/kustomization.yaml", &generated)
	files := map[string][]string{}
	for _, s := range generated.SecretGenerator {
		files[s.Name] = s.Files
	}
	var workloads []workload
	paths, err := filepath.Glob("kubernetes/base/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if base := filepath.Base(path); base != "role.yaml" && base != "millrace.yaml" {
			workloads = append(workloads, documents(t, path)...)
		}
	}
	var changes []workload
	if patch != "" {
		changes = documents(t, filepath.Join("kubernetes", patch))
	}
	var processes []process
	for _, w := range workloads {
		if len(w.Spec.Template.Spec.Containers) == 0 {
			continue
		}
		c := w.Spec.Template.Spec.Containers[0]
		p := process{where: filepath.Dir(file) + ": " + w.Metadata.Name, command: c.Args, env: map[string]string{},
			config: filepath.Join("kubernetes", file), secrets: map[string]bool{}, memory: c.Resources.Limits.Memory}
		for _, v := range c.Env {
			p.env[v.Name] = v.Value
		}
		for _, change := range changes {
			if change.Metadata.Name == w.Metadata.Name && change.Kind == w.Kind {
				for _, v := range change.Spec.Template.Spec.Containers[0].Env {
					p.env[v.Name] = v.Value
				}
			}
		}
		for _, n := range c.Ports {
			p.ports = append(p.ports, fmt.Sprint(n.ContainerPort))
		}
		for _, v := range w.Spec.Template.Spec.Volumes {
			if v.Name == "data" {
				p.disk = v.EmptyDir.SizeLimit
			}
			for _, s := range v.Projected.Sources {
				for _, name := range files[s.Secret.Name] {
					p.secrets[name] = true
				}
			}
		}
		processes = append(processes, p)
	}
	return processes
}

func documents(t *testing.T, path string) []workload {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []workload
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var w workload
		if err := d.Decode(&w); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		found = append(found, w)
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, n, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
