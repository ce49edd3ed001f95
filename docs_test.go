package millrace_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages returns the Markdown files of the repository with their text.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	sources(t, ".md", func(path, text string) { found[path] = text })
	if len(found) < 10 {
		t.Fatalf("only %d pages were found", len(found))
	}
	return found
}

// sources calls use for each file of the repository with this extension.
func sources(t *testing.T, ext string, use func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || path == "data" || path == "third_party"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ext:
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil {
			use(path, string(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	link       = regexp.MustCompile(`\]\(([^()\s]*)\)`)
	heading    = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInASlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors returns the anchors of a page's headings, as GitHub forms them.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		found[strings.ReplaceAll(notInASlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return found
}

// TestDocumentationLinks checks that every link between files leads to an existing file and
// heading.
func TestDocumentationLinks(t *testing.T) {
	t.Parallel()
	all := pages(t)
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
			} else if anchor != "" && !anchors(all[target])[anchor] {
				t.Errorf("%s links to %s, and the page has no such heading", page, m[1])
			}
		}
	}
}

// TestDocumentationIndex checks that the index of docs/ lists every page.
func TestDocumentationIndex(t *testing.T) {
	t.Parallel()
	all := pages(t)
	index := all[filepath.Join("docs", "README.md")]
	for page := range all {
		folder, name := filepath.Split(page)
		if folder == "docs/" && name != "README.md" && !strings.Contains(index, "("+name+")") {
			t.Errorf("docs/README.md does not link to %s", name)
		}
	}
}

// metric matches a metric in the packages that define them; documentedMetric one in the documentation.
var (
	metric           = regexp.MustCompile(`"(millrace_[a-z_]+)"`)
	documentedMetric = regexp.MustCompile("`(millrace_[a-z_]+)`")
)

// TestEveryMetricIsDocumented checks that docs/metrics.md has every metric, and no other.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	defined, documented := map[string]bool{}, map[string]bool{}
	sources(t, ".go", func(path, text string) {
		folder := filepath.ToSlash(filepath.Dir(path))
		if strings.HasSuffix(path, "_test.go") || folder != "internal/app" && folder != "internal/telemetry" {
			return
		}
		for _, m := range metric.FindAllStringSubmatch(text, -1) {
			defined[m[1]] = true
		}
	})
	if len(defined) < 30 {
		t.Fatalf("only %d metrics were found: %v", len(defined), defined)
	}
	for _, m := range documentedMetric.FindAllStringSubmatch(pages(t)[filepath.Join("docs", "metrics.md")], -1) {
		if documented[m[1]] = true; !defined[m[1]] {
			t.Errorf("docs/metrics.md has the metric %s, which does not exist", m[1])
		}
	}
	for name := range defined {
		if !documented[name] {
			t.Errorf("docs/metrics.md lacks the metric %s", name)
		}
	}
}
