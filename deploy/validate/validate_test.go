package validate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDeployments checks the deployments of this repository. It uses a copy with generated secrets,
// because the working tree has none.
func TestDeployments(t *testing.T) {
	t.Parallel()
	// In the repository, the sources for the image are beside this folder.
	dir := filepath.Join(t.TempDir(), "deploy")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "sh", "-c", `cd "$0" && git ls-files -z --cached --others --exclude-standard . | xargs -0 tar --create -- | tar --extract --directory "$1"`, source(t), dir)
	secrets := t.TempDir()
	run(t, dir, "compose/secrets/make", secrets)
	check := map[string]func(string) (int, []string, error){
		"compose/compose.yaml": checkCompose, "kubernetes/overlays/example": checkKustomize, "kubernetes/overlays/managed": checkKustomize,
	}
	for _, folder := range []string{"compose", "kubernetes/overlays/example", "kubernetes/overlays/managed"} {
		run(t, dir, "sh", "-c", `cp "$0"/* "$1"/`, secrets, folder+"/secrets")
	}
	for path, check := range check {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			n, faults, err := check(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range faults {
				t.Error(f)
			}
			t.Logf("%d services or objects", n)
		})
	}
}

// source returns the folder deploy.
func source(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// A deployment without faults, and the fault after one change to it.

const goodCompose = `
services:
  door:
    image: door:1.0
    command: [serve]
    user: "1000:1000"
    restart: unless-stopped
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    environment: {DOOR_PASSWORD_FILE: /run/secrets/key}
    secrets: [key]
    volumes: ["data:/data"]
    healthcheck: {test: [CMD, ask]}
    deploy: {resources: {limits: {cpus: "1", memory: 64M, pids: 16}}}
    depends_on: {first: {condition: service_completed_successfully}}
  first:
    image: door:1.0
    user: "1000:1000"
    restart: on-failure:3
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    deploy: {resources: {limits: {cpus: "1", memory: 64M, pids: 16}}}
secrets:
  key: {file: ./key}
volumes:
  data: {}
`

func TestCompose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{name: "a good one has no fault"},
		{"an unknown key", "command: [serve]", "comand: [serve]", "comand"},
		{"a key of the wrong type", "command: [serve]", "command: {serve: 1}", "command"},
		{"a secret that is not declared", "secrets: [key]", "secrets: [kye]", "undefined secret kye"},
		{"a secret whose file is missing", "file: ./key", "file: ./kye", "kye does not exist"},
		{"a secret that the environment names and the service is not given", "/run/secrets/key", "/run/secrets/other", "secret other, which the service does not have"},
		{"a secret in the environment", "{DOOR_PASSWORD_FILE: /run/secrets/key}", "{DOOR_PASSWORD: secret}", "DOOR_PASSWORD contains a secret"},
		{"a volume that is not declared", `["data:/data"]`, `["date:/data"]`, "undefined volume date"},
		{"a file that is not there", `["data:/data"]`, `["data:/data", "./nothing:/nothing"]`, "nothing, which does not exist"},
		{"no version of the image", "image: door:1.0\n    command", "image: door\n    command", "has no version"},
		{"no limits", "    deploy: {resources: {limits: {cpus: \"1\", memory: 64M, pids: 16}}}\n    depends", "    depends", "no limits"},
		{"no health check", "    healthcheck: {test: [CMD, ask]}\n", "", "no health check"},
		{"a root user", "user: \"1000:1000\"\n    restart: unless", "user: \"0:0\"\n    restart: unless", "runs as root"},
		{"privileges", "    cap_drop: [ALL]\n    security_opt: [\"no-new-privileges:true\"]\n    environment", "    environment", "keeps privileges"},
		{"a dependency on nothing", "depends_on: {first:", "depends_on: {frist:", "frist"},
		{"a dependency that is not waited for", "service_completed_successfully", "service_started", "wait until it has completed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, "key", "secret")
			write(t, dir, "compose.yaml", change(t, goodCompose, c.old, c.new))
			_, faults, err := checkCompose(filepath.Join(dir, "compose.yaml"))
			expect(t, faults, err, c.want)
		})
	}
}

const goodKustomization = `
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: door
resources: [objects.yaml]
secretGenerator:
  - name: door
    files: [key]
`

const goodObjects = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: door}
spec:
  replicas: 2
  selector: {matchLabels: {app: door}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: door}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: door
          image: door:1.0
          args: [serve, --key, /run/secrets/key]
          ports: [{name: api, containerPort: 80}]
          securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 64Mi}}
          readinessProbe: {httpGet: {path: /, port: api}}
          livenessProbe: {tcpSocket: {port: api}}
          volumeMounts: [{name: secrets, mountPath: /run/secrets}]
      volumes:
        - {name: secrets, secret: {secretName: door}}
---
apiVersion: v1
kind: Service
metadata: {name: door}
spec:
  selector: {app: door}
  ports: [{port: 80, targetPort: api}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: door}
spec:
  podSelector: {matchLabels: {app: door}}
  policyTypes: [Ingress]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: door}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: door}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: door}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: door}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}]
`

func TestKustomize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{name: "a good one has no fault"},
		// Rules of the API server.
		{"an unknown key", "readinessProbe:", "readynessProbe:", `unknown field "spec.template.spec.containers[0].readynessProbe"`},
		{"a number that is a text", "replicas: 2", "replicas: two", "replicas"},
		{"a text that is a number", "image: door:1.0", "image: 1", "image"},
		{"a key that is given twice", "replicas: 2", "replicas: 2\n  replicas: 3", "replicas"},
		{"an unknown kind", "kind: NetworkPolicy", "kind: NetworkPolice", "NetworkPolice"},
		{"a selector that is not the template's", "metadata: {labels: {app: door}}", "metadata: {labels: {app: other}}", "selector"},
		{"a quantity that is none", "cpu: 100m", "cpu: 100 milli", "quantities"},
		{"a limit below the request", "limits: {memory: 64Mi}", "limits: {memory: 32Mi}", "must be less than or equal to memory limit"},
		{"a volume that is not there", "[{name: secrets, mountPath", "[{name: secret, mountPath", "volumeMounts[0].name: Not found"},
		{"a rolling update that can move nothing", "maxSurge: 1", "maxSurge: 0", "may not be 0 when"},
		{"a probe of no port", "port: api}}\n          liveness", "port: 70000}}\n          liveness", "port"},
		{"a name that is none", "metadata: {name: door}\nspec:\n  selector: {app", "metadata: {name: Door_1}\nspec:\n  selector: {app", "metadata.name"},
		{"an enumeration's unknown value", "policyTypes: [Ingress]", "policyTypes: [Inward]", "policyTypes"},
		// Additional rules.
		{"no readiness probe", "          readinessProbe: {httpGet: {path: /, port: api}}\n", "", "missing readiness or liveness probe"},
		{"a probe of a port that is not declared", "tcpSocket: {port: api}", "tcpSocket: {port: 81}", "a probe uses port 81"},
		{"no limit of memory", ", limits: {memory: 64Mi}", "", "no limits of memory"},
		{"a root user", "runAsUser: 1000", "runAsUser: 0", "may run as root"},
		{"a writable image", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "may write to its image"},
		{"privileges", "capabilities: {drop: [ALL]}", "capabilities: {}", "keeps capabilities"},
		{"a token of the API server", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "token of the API server"},
		{"no version of the image", "image: door:1.0", "image: door", "has no version"},
		{"a secret that nobody makes", "secretName: door", "secretName: dior", "Secret dior does not exist"},
		{"a secret's file that is not there", "/run/secrets/key]", "/run/secrets/kye]", "/run/secrets/kye is not mounted"},
		{"a service without pods", "  selector: {app: door}\n  ports", "  selector: {app: other}\n  ports", "Service door: selects no pods"},
		{"a service of a port that is not declared", "targetPort: api", "targetPort: grpc", "declares no port grpc"},
		{"a pod that no policy guards", "podSelector: {matchLabels: {app: door}}", "podSelector: {matchLabels: {app: other}}", "no NetworkPolicy restricts who may reach it"},
		{"a budget of nothing", "maxUnavailable: 1\n  selector: {matchLabels: {app: door}}", "maxUnavailable: 1\n  selector: {matchLabels: {app: other}}", "PodDisruptionBudget door: selects no pods"},
		{"a scaler of nothing", "kind: Deployment, name: door", "kind: Deployment, name: other", "Deployment other does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, "key", "secret")
			write(t, dir, "kustomization.yaml", goodKustomization)
			write(t, dir, "objects.yaml", change(t, goodObjects, c.old, c.new))
			_, faults, err := checkKustomize(dir)
			expect(t, faults, err, c.want)
		})
	}
}

func change(t *testing.T, text, old, replacement string) string {
	t.Helper()
	if old != "" && strings.Count(text, old) != 1 {
		t.Fatalf("%q is there %d times", old, strings.Count(text, old))
	}
	return strings.Replace(text, old, replacement, 1)
}

func expect(t *testing.T, faults []string, err error, want string) {
	t.Helper()
	said := strings.Join(faults, "\n")
	if err != nil {
		said += "\n" + err.Error()
	}
	if want == "" && strings.TrimSpace(said) != "" {
		t.Fatalf("it finds faults where there are none: %s", said)
	}
	if !strings.Contains(said, want) {
		t.Fatalf("it says %q, and not %q", said, want)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
