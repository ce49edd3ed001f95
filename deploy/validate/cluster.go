package validate

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// cluster is the result of an overlay, for finding references to something that does not exist. The
// API server accepts such references, because the other object may be created later. Here all
// objects are known, so each is a fault. Names alone identify objects of a kind: an overlay has one
// namespace.
type cluster struct {
	pods       []pod
	configMaps map[string][]string // keys by name
	// The other kinds: the keys of secrets by name, the names of service accounts, and objects that
	// select pods or refer to workloads.
	secrets  map[string][]string
	accounts map[string]bool
	services []*corev1.Service
	budgets  []*policyv1.PodDisruptionBudget
	scalers  []*autoscalingv2.HorizontalPodAutoscaler
	policies []*networkingv1.NetworkPolicy
}

// pod is the template of a workload. name is "Kind name", for messages and for the targets of
// scalers.
type pod struct {
	name, kind string
	labels     map[string]string
	spec       corev1.PodSpec
	// once means that it runs to completion, like a Job.
	once     bool
	replicas int32
	service  string // of a StatefulSet
	// claims are the names of a StatefulSet's volume claims.
	claims []string
}

// newCluster returns an empty cluster. Every namespace has an account "default".
func newCluster() *cluster {
	return &cluster{configMaps: map[string][]string{}, secrets: map[string][]string{}, accounts: map[string]bool{"default": true}}
}

// add records an object that others may refer to, or that refers to others. Other kinds, such as
// Namespace, take no part in references.
func (c *cluster) add(name string, obj runtime.Object) {
	switch o := obj.(type) {
	case *corev1.ConfigMap:
		c.configMaps[o.Name] = slices.Concat(slices.Collect(maps.Keys(o.Data)), slices.Collect(maps.Keys(o.BinaryData)))
	case *corev1.Secret:
		c.secrets[o.Name] = slices.Concat(slices.Collect(maps.Keys(o.Data)), slices.Collect(maps.Keys(o.StringData)))
	case *corev1.ServiceAccount:
		c.accounts[o.Name] = true
	case *corev1.Service:
		c.services = append(c.services, o)
	case *policyv1.PodDisruptionBudget:
		c.budgets = append(c.budgets, o)
	case *autoscalingv2.HorizontalPodAutoscaler:
		c.scalers = append(c.scalers, o)
	case *networkingv1.NetworkPolicy:
		c.policies = append(c.policies, o)
	// Replicas is set, because defaults have been applied.
	case *appsv1.Deployment:
		c.pods = append(c.pods, pod{name: name, kind: "Deployment", labels: o.Spec.Template.Labels, spec: o.Spec.Template.Spec, replicas: *o.Spec.Replicas})
	case *batchv1.Job:
		c.pods = append(c.pods, pod{name: name, labels: o.Spec.Template.Labels, spec: o.Spec.Template.Spec, once: true})
	case *appsv1.StatefulSet:
		p := pod{name: name, labels: o.Spec.Template.Labels, spec: o.Spec.Template.Spec, replicas: *o.Spec.Replicas, service: o.Spec.ServiceName}
		for _, claim := range o.Spec.VolumeClaimTemplates {
			p.claims = append(p.claims, claim.Name)
		}
		c.pods = append(c.pods, p)
	}
}

// check returns the faults of all objects together. Call it once, after every add: the order of
// objects in an overlay is arbitrary.
//
// It checks each pod by itself and its references. Then it checks that services, disruption
// budgets, scalers and network policies select something, because an object that selects nothing
// has no effect, without an error. Last, every pod must be covered by a network policy.
func (c *cluster) check() []string {
	var faults []string
	for _, p := range c.pods {
		add := func(format string, args ...any) { faults = append(faults, p.name+": "+fmt.Sprintf(format, args...)) }
		checkPod(p.spec, p.once, add)
		c.checkReferences(p, add)
	}
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, s := range c.services {
		c.checkService(s, add)
	}
	for _, b := range c.budgets {
		if len(c.selected(b.Spec.Selector)) == 0 {
			add("PodDisruptionBudget %s: selects no pods", b.Name)
		}
	}
	for _, s := range c.scalers {
		target := s.Spec.ScaleTargetRef
		if !slices.ContainsFunc(c.pods, func(p pod) bool { return p.name == target.Kind+" "+target.Name }) {
			add("HorizontalPodAutoscaler %s: %s %s does not exist", s.Name, target.Kind, target.Name)
		}
	}
	for _, p := range c.policies {
		if len(c.selected(&p.Spec.PodSelector)) == 0 {
			add("NetworkPolicy %s: selects no pods", p.Name)
		}
	}
	// Without a policy that selects it, a pod accepts connections from anywhere.
	for _, p := range c.pods {
		if !slices.ContainsFunc(c.policies, func(n *networkingv1.NetworkPolicy) bool {
			return slices.Contains(n.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) && matches(&n.Spec.PodSelector, p.labels)
		}) {
			add("%s: no NetworkPolicy restricts who may reach it", p.name)
		}
	}
	return faults
}

// checkService reports a service that selects no pod, or a port that its pods do not declare.
// Kubernetes would accept both and never forward a connection.
func (c *cluster) checkService(s *corev1.Service, add func(string, ...any)) {
	pods := c.selected(&metav1.LabelSelector{MatchLabels: s.Spec.Selector})
	if len(pods) == 0 {
		add("Service %s: selects no pods", s.Name)
	}
	for _, p := range pods {
		for _, port := range s.Spec.Ports {
			if !slices.ContainsFunc(p.spec.Containers, func(k corev1.Container) bool { return declares(k, port.TargetPort) }) {
				add("Service %s: %s declares no port %s", s.Name, p.name, port.TargetPort.String())
			}
		}
	}
}

// declares reports whether a container declares a port, by name or by number. An unnamed service
// port has its own number as its target, by default.
func declares(c corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(c.Ports, func(d corev1.ContainerPort) bool { return d.Name == port.String() || d.ContainerPort == port.IntVal })
}

// selected returns the pods that a selector matches.
func (c *cluster) selected(s *metav1.LabelSelector) []pod {
	var found []pod
	for _, p := range c.pods {
		if matches(s, p.labels) {
			found = append(found, p)
		}
	}
	return found
}

// matches reports whether a selector matches labels. An empty selector matches all labels, and a
// nil one matches none.
func matches(s *metav1.LabelSelector, l map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(l))
}

// checkReferences reports references of a pod to something that does not exist: configuration,
// secrets and their files, accounts, services. A pod with such a reference would not start, or
// would start without a file.
func (c *cluster) checkReferences(p pod, add func(string, ...any)) {
	if p.spec.ServiceAccountName != "" && !c.accounts[p.spec.ServiceAccountName] {
		add("ServiceAccount %s does not exist", p.spec.ServiceAccountName)
	}
	// A StatefulSet needs a headless service for the names of its pods.
	if p.service != "" && !slices.ContainsFunc(c.services, func(s *corev1.Service) bool { return s.Name == p.service && s.Spec.ClusterIP == corev1.ClusterIPNone }) {
		add("headless Service %s does not exist", p.service)
	}
	// A volume that is not in the map, such as an empty folder or a claim, may contain any file.
	files := map[string][]string{} // files by volume, if known
	for _, v := range p.spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			files[v.Name] = c.keys(c.configMaps, "ConfigMap", v.ConfigMap.Name, v.ConfigMap.Items, add)
		case v.Secret != nil:
			files[v.Name] = c.keys(c.secrets, "Secret", v.Secret.SecretName, v.Secret.Items, add)
		case v.Projected != nil:
			files[v.Name] = []string{}
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					files[v.Name] = append(files[v.Name], c.keys(c.secrets, "Secret", s.Secret.Name, s.Secret.Items, add)...)
				}
				if s.ConfigMap != nil {
					files[v.Name] = append(files[v.Name], c.keys(c.configMaps, "ConfigMap", s.ConfigMap.Name, s.ConfigMap.Items, add)...)
				}
			}
		}
	}
	for _, k := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
		c.checkFiles(k, files, add)
	}
}

// keys returns the file names in a volume made of a ConfigMap or Secret, and reports what is
// missing. have is the keys of all objects of the kind. Without items, each key is a file of its
// own name; with items, only the listed ones are, under the listed paths.
func (c *cluster) keys(have map[string][]string, kind, name string, items []corev1.KeyToPath, add func(string, ...any)) []string {
	keys, ok := have[name]
	if !ok {
		add("%s %s does not exist", kind, name)
		return nil
	}
	if len(items) == 0 {
		return keys
	}
	var paths []string
	for _, item := range items {
		if !slices.Contains(keys, item.Key) {
			add("%s %s has no key %s", kind, name, item.Key)
		}
		paths = append(paths, item.Path)
	}
	return paths
}

// checkFiles reports secrets and scripts in a container's command or environment that are not
// mounted. It recognises them by their folders, /run/secrets and /etc/millrace, which only mounts
// fill.
func (c *cluster) checkFiles(k corev1.Container, files map[string][]string, add func(string, ...any)) {
	mounted := func(file string) bool {
		for _, m := range k.VolumeMounts {
			if m.SubPath != "" && m.MountPath == file && slices.Contains(files[m.Name], m.SubPath) {
				return true
			}
			rest, ok := strings.CutPrefix(file, strings.TrimSuffix(m.MountPath, "/")+"/")
			if ok && m.SubPath == "" && slices.Contains(files[m.Name], rest) {
				return true
			}
		}
		return false
	}
	for _, m := range k.VolumeMounts {
		if known, ok := files[m.Name]; ok && m.SubPath != "" && !slices.Contains(known, m.SubPath) {
			add("container %s: volume %s has no file %s", k.Name, m.Name, m.SubPath)
		}
	}
	texts := slices.Concat(k.Command, k.Args)
	for _, v := range k.Env {
		texts = append(texts, v.Value)
	}
	for _, text := range texts {
		for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" \"'=&;", r) }) {
			if (strings.HasPrefix(word, "/run/secrets/") || strings.HasPrefix(word, "/etc/millrace/")) && !mounted(path.Clean(word)) {
				add("container %s: %s is not mounted", k.Name, word)
			}
		}
	}
}
