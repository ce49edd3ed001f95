package monitoring_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/duration"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/prometheus"
)

const (
	root  = "../.."
	rules = root + "/deploy/prometheus"
)

// promtool runs promtool in the folder of the rules.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := prometheus.Promtool()
	if err != nil {
		process.SkipOrFail(t, "promtool", err)
	}
	run := exec.CommandContext(t.Context(), path, args...)
	run.Dir, run.Stdin = rules, strings.NewReader(stdin)
	if output, err := run.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, output)
	}
}

// The configuration and the rules are valid, and every alert fires and clears as its test says.
// TestAlertRules in deploy checks that each alert has a test.
func TestRules(t *testing.T) {
	t.Parallel()
	promtool(t, "", "check", "config", "prometheus.yaml")
	tests, err := filepath.Glob(rules + "/tests/*.yaml")
	if err != nil || len(tests) == 0 {
		t.Fatalf("no tests: %v", err)
	}
	for _, test := range tests {
		promtool(t, "", "test", "rules", "tests/"+filepath.Base(test))
	}
}

// faster returns a copy of a rule file in which a minute is a second: windows, delays and intervals are
// 60 times shorter. A sink is late after three seconds.
func faster(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(rules, name))
	if err != nil {
		t.Fatal(err)
	}
	quick := regexp.MustCompile(`\[\w+\]|(?:for|interval): \w+`).ReplaceAllStringFunc(string(text), func(s string) string {
		return regexp.MustCompile(`\d+[smhd]`).ReplaceAllStringFunc(s, func(d string) string {
			long, err := duration.Parse(d)
			if err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			return strconv.Itoa(int(max(long/60, time.Second)/time.Second)) + "s"
		})
	})
	quick = strings.ReplaceAll(quick, "> bool 30", "> bool 3")
	if strings.Count(quick, "> bool 3") != strings.Count(string(text), "> bool 30") || quick == string(text) {
		t.Fatalf("%s is as slow as before", name)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(quick), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
