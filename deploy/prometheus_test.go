package deploy_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestAlertRules: each alert is complete, and each metric in it is one that the documentation lists.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("prometheus/features.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(content, &file); err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%v: %+v", err, file)
	}
	var documented strings.Builder
	for _, page := range []string{"../docs/features-quality.md", "../docs/features-serving.md", "../docs/operations.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		documented.Write(text)
	}
	metric := regexp.MustCompile(`\bmillrace_[a-z_]+`)
	for _, r := range file.Groups[0].Rules {
		if r.Alert == "" || r.For == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%+v is not complete", r)
		}
		names := metric.FindAllString(r.Expr, -1)
		if len(names) == 0 {
			t.Errorf("%s has no metric", r.Alert)
		}
		for _, name := range names {
			if !strings.Contains(documented.String(), "`"+name+"`") {
				t.Errorf("%s: %s is not documented", r.Alert, name)
			}
		}
	}
}
