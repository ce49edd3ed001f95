package feast

import (
	"bytes"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/gen/feast/core"
)

// TestRegistry: the registry has a view and a service for each group, and each entity once.
func TestRegistry(t *testing.T) {
	t.Parallel()
	b, err := Registry("shop", groups())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Registry("shop", groups()); err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same groups have another registry, %v", err)
	}
	var r core.Registry
	if err := proto.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.GetEntities()) != 2 || len(r.GetFeatureViews()) != 3 || len(r.GetFeatureServices()) != 3 {
		t.Errorf("the registry is %v", &r)
	}
	for i, g := range groups() {
		view, service := r.GetFeatureViews()[i].GetSpec(), r.GetFeatureServices()[i].GetSpec()
		outputs := g.Outputs()
		if view.GetName() != g.Name || service.GetName() != g.Name || view.GetEntities()[0] != g.Entity ||
			len(view.GetFeatures()) != len(outputs) || len(service.GetFeatures()[0].GetFeatureColumns()) != len(outputs) {
			t.Errorf("group %s is %v and %v", g.Name, view, service)
		}
		for j, f := range view.GetFeatures() {
			if f.GetName() != outputs[j].Name || f.GetValueType() == core.ValueType_INVALID {
				t.Errorf("group %s: %v is not %s", g.Name, f, outputs[j].Name)
			}
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r    Repository
		want map[string]any // without what all have; nil: an error
	}{
		"loopback": {Repository{Offline: "127.0.0.1:8815"}, map[string]any{
			"online_store":  map[string]any{"type": "remote", "path": "http://o"},
			"offline_store": map[string]any{"type": "remote", "host": "127.0.0.1", "port": 8815}}},
		"IPv6, TLS and tokens": {Repository{Offline: "[::1]:1", TLS: true, Tokens: true}, map[string]any{
			"online_store":  map[string]any{"type": "remote", "path": "http://o", "cert": "ca.crt"},
			"offline_store": map[string]any{"type": "remote", "host": "[::1]", "port": 1, "scheme": "https", "cert": "ca.crt"},
			"auth":          map[string]any{"type": "oidc", "token_env_var": "MILLRACE_AUTH_TOKEN"}}},
		"no port":         {Repository{Offline: "127.0.0.1"}, nil},
		"not a port":      {Repository{Offline: "127.0.0.1:http"}, nil},
		"a port too high": {Repository{Offline: "127.0.0.1:65536"}, nil},
	} {
		c.r.Project, c.r.Registry, c.r.Online = "p", "r.db", "http://o"
		text, err := c.r.Settings()
		if c.want == nil {
			if err == nil || !strings.Contains(err.Error(), "address of the offline store") {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		c.want["project"], c.want["registry"], c.want["provider"] = "p", "r.db", "local"
		c.want["entity_key_serialization_version"] = 3
		want, failed := yaml.Marshal(c.want)
		var got map[string]any
		if err == nil {
			err = yaml.Unmarshal([]byte(text), &got)
		}
		have, marshal := yaml.Marshal(got)
		if err != nil || failed != nil || marshal != nil || !bytes.Equal(have, want) {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, text, want)
		}
	}
}
