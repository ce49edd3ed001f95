package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// text returns a file.
func text(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestAlertRules: each alert is complete, has a test and a page of a runbook, and each metric in a rule
// is one that the documentation lists. test/monitoring runs the tests of the rules.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	documented := text(t, "../docs/metrics.md")
	var config struct {
		RuleFiles []string `yaml:"rule_files"`
	}
	if err := yaml.Unmarshal([]byte(text(t, "prometheus/prometheus.yaml")), &config); err != nil ||
		len(config.RuleFiles) == 0 {
		t.Fatalf("%v: %+v", err, config)
	}
	for _, file := range config.RuleFiles {
		var rules struct {
			Groups []struct {
				Rules []struct {
					Record, Alert, Expr string
					Labels, Annotations map[string]string
				}
			}
		}
		if err := yaml.Unmarshal([]byte(text(t, filepath.Join("prometheus", file))), &rules); err != nil ||
			len(rules.Groups) == 0 {
			t.Fatalf("%s: %v: %+v", file, err, rules)
		}
		tests := text(t, filepath.Join("prometheus/tests", file))
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				for _, m := range metric.FindAllStringSubmatch(r.Expr, -1) {
					// A colon is before and behind the name of a recorded metric.
					name := strings.TrimSuffix(m[1], "_count")
					if !strings.Contains(documented, "`"+name+"`") && !strings.Contains(r.Expr, ":"+m[1]+":") {
						t.Errorf("%s: %s%s: %s is not documented", file, r.Record, r.Alert, m[1])
					}
				}
				if r.Record != "" {
					continue
				}
				page := r.Annotations["runbook_url"]
				if r.Alert == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" ||
					r.Annotations["description"] == "" || !strings.HasPrefix(page, "docs/runbooks/") {
					t.Errorf("%s: %+v is not complete", file, r)
					continue
				}
				if !strings.Contains(text(t, filepath.Join("..", page)), "`"+r.Alert+"`") {
					t.Errorf("%s does not name the alert %s", page, r.Alert)
				}
				if !strings.Contains(tests, "alertname: "+r.Alert+"\n") ||
					!strings.Contains(tests, "alertname: "+r.Alert+", exp_alerts: []") {
					t.Errorf("%s: no test shows that %s fires and clears", file, r.Alert)
				}
			}
		}
	}
}

// metric matches a metric of Millrace in an expression.
var metric = regexp.MustCompile(`\b(millrace_[a-z_]+)`)
