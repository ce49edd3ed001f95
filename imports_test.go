// Package millrace_test checks the import rule and the documentation of the repository.
package millrace_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/millrace/millrace/"

// mayImport lists, for every folder with packages, the other folders of the repository that its
// packages may import, directly or indirectly, besides internal/. A service, a view or a source
// imports none of its siblings.
var mayImport = map[string][]string{
	"event":               {"gen/millrace/event"},
	"event/behavior":      {"event", "gen/millrace/behavior", "gen/millrace/event"},
	"event/identity":      {"event", "gen/millrace/event", "gen/millrace/identity"},
	"gen":                 {"gen"},
	"internal":            {"event", "gen"},
	"internal/app":        {""},
	"commands/eventstore": {"event", "gen/millrace/event", "commands/eventstore"},
	"commands":            {"event", "gen", "commands/eventstore"},
	"ingest":              {"event", "gen", "commands/eventstore"},
	"streams":             {"event", "gen/millrace/event", "streams"},
	"readmodels":          {"streams", "event", "gen"},
	"lake":                {"streams", "event", "gen", "lake"},
	"verify":              {"event", "gen/millrace/event"},
	"features":            {"streams", "event", "gen", "features"},
	"flags":               {"event", "gen", "flags"},
	"processes":           {"streams", "event", "gen"}, // and internal/client, to send commands
	// Reserved folders, which need not exist yet.
	"gateway": {"event", "gen"},
	"web":     {},

	"deploy": {"event"},
	"cmd":    {""},
	"bench":  {""},
	"test":   {""},
}

func TestImportRule(t *testing.T) {
	t.Parallel()
	dependOnSource(t)
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.ImportPath}} {{join .Deps \" \"}}", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	checked := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg, ours := strings.CutPrefix(words[0], module)
		if !ours {
			continue // the root contains tests only
		}
		folder := folderOf(pkg)
		allowed, known := mayImport[folder]
		if !known {
			t.Errorf("%s: its folder stands in no rule; add it to mayImport", pkg)
			continue
		}
		checked++
		for _, dep := range words[1:] {
			if dep, ours := strings.CutPrefix(dep, module); ours && !permitted(pkg, dep, allowed) {
				t.Errorf("%s may not import %s", pkg, dep)
			}
		}
	}
	if checked < 10 {
		t.Fatalf("only %d packages were checked", checked)
	}
}

// dependOnSource opens every source file, so that `go test` does not use a cached result after one
// has changed.
func dependOnSource(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case !d.IsDir() && filepath.Ext(path) == ".go":
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestReservedFolders checks that the rule already covers the reserved folders.
func TestReservedFolders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pkg, dep string
		may      bool
	}{
		{"processes/fulfilment", "streams", true},
		{"processes/fulfilment", "internal/client", true},
		{"processes/fulfilment", "gen/millrace/order/v1", true},
		{"processes/fulfilment", "commands/order", false},
		{"processes/fulfilment", "processes/notification", false},
		{"processes/fulfilment", "internal/app", false},
		{"features/basket", "streams", true},
		{"features/basket", "lake", false},
		{"gateway", "gen/millrace/order/v1", true},
		{"gateway", "streams", false},
		{"web", "gen/millrace/order/v1", false},
		{"lake", "features/basket", false},
		{"commands/order", "processes/fulfilment", false},
		{"internal/rpc", "internal/app", false},
		{"cmd/millrace", "internal/app", true},
	} {
		if may := permitted(c.pkg, c.dep, mayImport[folderOf(c.pkg)]); may != c.may {
			t.Errorf("%s imports %s: permitted is %v, want %v", c.pkg, c.dep, may, c.may)
		}
	}
}

// folderOf returns the longest folder of mayImport that contains pkg.
func folderOf(pkg string) string {
	best := ""
	for folder := range mayImport {
		if within(pkg, folder) && len(folder) > len(best) {
			best = folder
		}
	}
	return best
}

func permitted(pkg, dep string, allowed []string) bool {
	if within(dep, "internal/app") && !within(pkg, "internal/app") {
		return within(pkg, "cmd") || within(pkg, "test") // only the command line and whole-system tests start a process
	}
	// A package may import its parents: an adapter implements the interface of the package that
	// contains it.
	if within(dep, "internal") || within(dep, pkg) || within(pkg, dep) {
		return true
	}
	if view, in := viewOf(pkg); in && within(dep, view) { // shared by the adapters of one view
		return true
	}
	// The packages below commands and readmodels share the root package: the runner, or folding and
	// tokens.
	for _, shared := range []string{"commands", "readmodels"} {
		if within(pkg, shared) && dep == shared {
			return true
		}
	}
	return slices.ContainsFunc(allowed, func(folder string) bool { return within(dep, folder) })
}

// viewOf returns the folder of the view that contains pkg.
func viewOf(pkg string) (string, bool) {
	parts := strings.SplitN(pkg, "/", 3)
	if len(parts) < 3 || parts[0] != "readmodels" {
		return "", false
	}
	return parts[0] + "/" + parts[1], true
}

func within(pkg, folder string) bool {
	return folder == "" || pkg == folder || strings.HasPrefix(pkg, folder+"/")
}
