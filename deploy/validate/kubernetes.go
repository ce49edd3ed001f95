package validate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// strategies are the API server's handling of new objects, by kind. Any other kind is an error, so
// that nothing remains unchecked.
var strategies = map[schema.GroupVersionKind]rest.RESTCreateStrategy{
	{Version: "v1", Kind: "ConfigMap"}:                                     configmap.Strategy,
	{Version: "v1", Kind: "Namespace"}:                                     namespace.Strategy,
	{Version: "v1", Kind: "Secret"}:                                        secret.Strategy,
	{Version: "v1", Kind: "Service"}:                                       service.Strategy,
	{Version: "v1", Kind: "ServiceAccount"}:                                serviceaccount.Strategy,
	{Group: "apps", Version: "v1", Kind: "Deployment"}:                     deployment.Strategy,
	{Group: "apps", Version: "v1", Kind: "StatefulSet"}:                    statefulset.Strategy,
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"}: horizontalpodautoscaler.Strategy,
	{Group: "batch", Version: "v1", Kind: "Job"}:                           job.Strategy,
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"}:     networkpolicy.Strategy,
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"}:          poddisruptionbudget.Strategy,
}

// decoder rejects unknown fields, duplicate fields and wrong types, as kubectl --validate=strict
// does.
var decoder = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

// checkKustomize builds a folder, and processes each object as the API server does before it stores
// it: strict decoding, defaults, validation. Then it applies the rules to all objects together. It
// returns the number of objects and the faults.
func checkKustomize(folder string) (int, []string, error) {
	// Plugins could run programs, and none are needed.
	options := krusty.MakeDefaultOptions()
	options.PluginConfig = types.DisabledPluginConfig()
	built, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return 0, nil, err
	}
	var faults []string
	c := newCluster()
	for _, r := range built.Resources() {
		name := fmt.Sprintf("%s %s", r.GetKind(), r.GetName())
		text, err := r.AsYAML()
		if err != nil {
			return 0, nil, fmt.Errorf("%s: %w", name, err)
		}
		obj, errs := admit(text)
		for _, e := range errs {
			faults = append(faults, name+": "+e)
		}
		if obj != nil {
			c.add(name, obj)
		}
	}
	return built.Size(), append(faults, c.check()...), nil
}

// admit decodes and validates one object with its defaults, and returns it in its published
// version. The steps are those of the API server for a new object:
//
//  1. Decode strictly, and apply the defaults.
//  2. Convert to the internal version, on which validation is defined.
//  3. Run the strategy of its kind: prepare for creation, then validate.
//
// The object is nil only if it cannot be decoded or converted. An invalid one is returned with its
// faults, so that its references are still checked.
func admit(text []byte) (runtime.Object, []string) {
	obj, kind, err := decoder.Decode(text, nil, nil)
	if err != nil {
		return nil, []string{err.Error()}
	}
	strategy, ok := strategies[*kind]
	if !ok {
		return nil, []string{fmt.Sprintf("unknown kind %s: add its strategy", kind)}
	}
	legacyscheme.Scheme.Default(obj)
	internal, err := legacyscheme.Scheme.ConvertToVersion(obj.DeepCopyObject(), schema.GroupVersion{Group: kind.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, []string{err.Error()}
	}
	if s, ok := internal.(*core.Service); ok && s.Spec.ClusterIP == core.ClusterIPNone {
		// The server does this beside the storage, which is not available here.
		s.Spec.ClusterIPs = []string{core.ClusterIPNone}
	}
	ctx := request.WithNamespace(context.Background(), obj.(metav1.Object).GetNamespace())
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{APIGroup: kind.Group, APIVersion: kind.Version})
	rest.FillObjectMetaSystemFields(internal.(metav1.Object))
	err = rest.BeforeCreate(strategy, ctx, internal)
	// A validation error lists all invalid fields as causes.
	if status, ok := err.(apierrors.APIStatus); ok && status.Status().Details != nil && len(status.Status().Details.Causes) > 0 {
		var faults []string
		for _, cause := range status.Status().Details.Causes {
			faults = append(faults, cause.Field+": "+cause.Message)
		}
		return obj, faults
	}
	if err != nil {
		return obj, []string{err.Error()}
	}
	return obj, nil
}

// checkPod applies the rules to a pod's template: no access to the API server or the host, the
// default seccomp profile, bounded volumes. Pods that run once need no probes.
func checkPod(spec corev1.PodSpec, once bool, add func(string, ...any)) {
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		add("it mounts a token of the API server: set automountServiceAccountToken to false")
	}
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		add("it shares the host's namespaces")
	}
	pod := spec.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if pod.SeccompProfile == nil || pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		add("its seccomp profile is not RuntimeDefault")
	}
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			add("volume %s is a path of the host", v.Name)
		}
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit == nil {
			add("volume %s has no size limit", v.Name)
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		checkContainer(c, pod, func(format string, args ...any) { add("container "+c.Name+": "+format, args...) })
	}
	for _, c := range spec.Containers {
		if !once && (c.ReadinessProbe == nil || c.LivenessProbe == nil) {
			add("container %s: missing readiness or liveness probe", c.Name)
		}
		for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
			checkProbe(p, c, add)
		}
	}
}

// checkContainer applies the rules to one container of a pod. pod has the settings that apply if
// the container has none of its own. A limit of CPU is not required: it would slow a process even
// on an idle node.
func checkContainer(c corev1.Container, pod *corev1.PodSecurityContext, add func(string, ...any)) {
	if !pinned(c.Image) {
		add("image %q has no version", c.Image)
	}
	for _, list := range []struct {
		name string
		corev1.ResourceList
	}{{"requests", c.Resources.Requests}, {"limits", c.Resources.Limits}} {
		if list.Memory().IsZero() {
			add("no %s of memory", list.name)
		}
	}
	if c.Resources.Requests.Cpu().IsZero() {
		add("no requests of CPU")
	}
	s := c.SecurityContext
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	nonRoot := s.RunAsNonRoot
	if nonRoot == nil {
		nonRoot = pod.RunAsNonRoot
	}
	user := s.RunAsUser
	if user == nil {
		user = pod.RunAsUser
	}
	if nonRoot == nil || !*nonRoot || user == nil || *user == 0 {
		add("it may run as root: set runAsNonRoot and runAsUser")
	}
	if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		add("it may write to its image: set readOnlyRootFilesystem")
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Privileged != nil && *s.Privileged {
		add("it may gain privileges: set allowPrivilegeEscalation to false")
	}
	if s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
		add("it keeps capabilities: drop ALL")
	}
	for _, v := range c.Env {
		if v.Value != "" && (strings.HasSuffix(v.Name, "PASSWORD") || strings.HasSuffix(v.Name, "SECRET_KEY") || strings.HasSuffix(v.Name, "TOKEN")) {
			add("%s contains a secret: use a file", v.Name)
		}
	}
}

// checkProbe reports probes of ports that the container does not declare. Such a probe may work,
// but hides a misspelt port. Other kinds of probes have no port.
func checkProbe(p *corev1.Probe, c corev1.Container, add func(string, ...any)) {
	if p == nil {
		return
	}
	var port string
	switch {
	case p.HTTPGet != nil:
		port = p.HTTPGet.Port.String()
	case p.TCPSocket != nil:
		port = p.TCPSocket.Port.String()
	default:
		return
	}
	if !slices.ContainsFunc(c.Ports, func(d corev1.ContainerPort) bool { return d.Name == port || fmt.Sprint(d.ContainerPort) == port }) {
		add("container %s: a probe uses port %s, which is not declared", c.Name, port)
	}
}
