package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/gen/feast/core"
)

// TestFeaturesRegistry: the registry has the groups of the configuration, and the settings its
// addresses.
func TestFeaturesRegistry(t *testing.T) {
	t.Setenv("MILLRACE_FEATURES_GROUPS", "customer_value")
	path := filepath.Join(t.TempDir(), "shop.db")
	out, err := run(t, "features", "registry", "--out", path, "--project", "shop")
	for _, want := range []string{"project: shop\n", "registry: shop.db\n", "path: http://127.0.0.1:6566\n", "port: 8815\n"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v, no %q in:\n%s", err, want, out)
		}
	}
	var r core.Registry
	b, err := os.ReadFile(path)
	if err == nil {
		err = proto.Unmarshal(b, &r)
	}
	if err != nil || len(r.GetFeatureViews()) != 1 || r.GetFeatureViews()[0].GetSpec().GetName() != "customer_value" {
		t.Errorf("%v: the registry is %v", err, &r)
	}

	t.Setenv("MILLRACE_TLS_CERT", "server.crt")
	t.Setenv("MILLRACE_AUTH_TOKENS", "tokens")
	out, err = run(t, "features", "registry", "--out", path, "--offline", "features:8815")
	for _, want := range []string{"path: https://127.0.0.1:6566\n", "scheme: https\n", "host: features\n", "cert: ca.crt\n",
		"token_env_var: MILLRACE_AUTH_TOKEN\n"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v, no %q in:\n%s", err, want, out)
		}
	}
	if _, err := run(t, "features", "registry", "--out", path, "--addr", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "--online") {
		t.Errorf("the addresses of another system: %v", err)
	}
	if _, err := run(t, "features", "registry", "--out", path+"/none/r.db"); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("a folder that does not exist: %v", err)
	}
}
