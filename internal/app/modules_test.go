package app

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/lake/declare"
	laketables "github.com/millrace/millrace/lake/tables"
)

// TestListsAgree compares the list of modules with those of event and lake, which may not import
// this package.
func TestListsAgree(t *testing.T) {
	t.Parallel()
	m := Shop()
	if have, want := m.aggregates(), event.Aggregates(); !slices.Equal(have, want) {
		t.Errorf("Shop has services of %v; event.Aggregates has %v", have, want)
	}
	names := func(tables []declare.Table) (names []string) {
		for _, t := range tables {
			names = append(names, t.Name)
		}
		slices.Sort(names)
		return names
	}
	if have, want := names(m.tables()), names(append(laketables.All(), laketables.BehaviorEvents)); !slices.Equal(have, want) {
		t.Errorf("Shop has the tables %v; lake/tables has %v", have, want)
	}
}

func TestServices(t *testing.T) {
	t.Parallel()
	for _, s := range append(Shop().Services, voucherService) {
		a := s.Aggregate
		events := 0
		for _, table := range s.Tables {
			switch {
			case table.Topic != a.Topic:
				t.Errorf("%s: table %s is fed by %s", a.Name, table.Name, table.Topic)
			case table.Events == a:
				events++
			case table.Derived != a || table.Sums.Expect == nil:
				t.Errorf("%s: table %s cannot be verified", a.Name, table.Name)
			}
		}
		if events != 1 {
			t.Errorf("%s has %d tables of its events, want 1", a.Name, events)
		}
		// Rights are granted for services, but checked on paths.
		path, _ := s.Handler(commandstest.OpenStore(t, a))
		if parts := strings.Split(strings.Trim(path, "/"), "."); len(parts) != 4 || parts[1] != a.Service {
			t.Errorf("%s is served at %s: want millrace.%s.vN.<Service>", a.Name, path, a.Service)
		}
		if a == voucher {
			continue
		}
		for _, surface := range []string{auth.Commands, auth.Queries} {
			if _, err := auth.ParseRights([]string{string(auth.On(surface, a.Service))}); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
		}
	}
}

func TestViews(t *testing.T) {
	t.Parallel()
	m := Shop()
	seen := map[string]bool{}
	for _, v := range m.Views {
		if name, version, ok := strings.Cut(v.Name, "/"); !ok || name == "" || !strings.HasPrefix(version, "v") ||
			seen[v.Name] {
			t.Errorf("view %q: want a name of its own, with a version: name/v1", v.Name)
		}
		seen[v.Name] = true
		if v.Open == nil || v.Drop == nil || len(v.Feeds) == 0 {
			t.Errorf("view %s lacks Open, Drop or Feeds", v.Name)
		}
		for _, f := range v.Feeds {
			source := func(s Source) bool { return s.Aggregate == f.Aggregate }
			switch {
			case slices.Contains(m.aggregates(), f.Aggregate):
				if f.Expected == nil {
					t.Errorf("view %s cannot be verified against the store of %s", v.Name, f.Aggregate.Service)
				}
			case !slices.ContainsFunc(m.Sources, source):
				t.Errorf("view %s reads %s, which nothing writes", v.Name, f.Aggregate.Name)
			}
		}
	}
}

// TestTheGuideShowsRealCode checks that the Go code in docs/adding-a-service.md is code of the
// repository.
func TestTheGuideShowsRealCode(t *testing.T) {
	t.Parallel()
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	code := read("voucher_test.go") + read("modules.go") +
		read("../../proto/millrace/example/v1/voucher_events.proto") +
		read("../../proto/millrace/example/v1/voucher_service.proto")
	blocks := strings.Split(read("../../docs/adding-a-service.md"), "```")
	checked := 0
	for i := 1; i < len(blocks); i += 2 {
		_, shown, _ := strings.Cut(blocks[i], "\n") // behind the language
		for part := range strings.SplitSeq(shown, "\n\n") {
			checked++
			if !strings.Contains(code, strings.TrimRight(part, "\n")) {
				t.Errorf("this is not in the code any more:\n%s", part)
			}
		}
	}
	if checked < 9 {
		t.Errorf("only %d pieces of code were found", checked)
	}
}
