package landing

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
)

// A missing file of a table, whichever it is and whoever notices, is reported by every process with
// a remedy. Landing continues and other tables are not affected. When the file is back, the report
// ends.
func TestLostFilesAreReported(t *testing.T) {
	t.Parallel()
	for name, found := range map[string]func(t *testing.T, l *lake.Lake) error{
		"by a verification": func(t *testing.T, l *lake.Lake) error {
			_, err := l.EventsDigest(t.Context(), event.Order)
			return err
		},
		"by maintenance": func(t *testing.T, l *lake.Lake) error {
			_, err := l.Maintain(t.Context(), tables.OrdersEvents.Identifier(), maintenance.Config{DutyCycle: 1, SmallFiles: 1000}, nil)
			return err
		},
		"by a check": func(t *testing.T, l *lake.Lake) error { return l.Check(t.Context(), tables.OrdersEvents.Identifier()) },
	} {
		for _, what := range []string{"data file", "manifest"} {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				s := newShop(t)
				config := ordersOnly(localLake(t))
				l, asked := openLake(t, config), openLake(t, config)
				stop := start(t, l, s.runConfig())
				for range 3 {
					s.mustTrade(t, 20)
					s.landed(t, l)
				}
				lost := strings.TrimPrefix(oneFile(t, l, tables.OrdersEvents, what), "file://")
				content, err := os.ReadFile(lost)
				if err == nil {
					err = os.Remove(lost)
				}
				if err != nil {
					t.Fatal(err)
				}
				var fault *faults.TableError
				if err := found(t, asked); !errors.As(err, &fault) || fault.Table != tables.OrdersEvents.Name || !strings.Contains(fault.Error(), lost) || fault.Remedy != faults.RemedyLost {
					t.Fatalf("found: %v", err)
				}
				reported := func(of *lake.Lake) (names []string) {
					_, broken, err := of.Report(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, b := range broken {
						names = append(names, b.Table)
						if !strings.Contains(b.Error(), lost) || b.Remedy != faults.RemedyLost {
							t.Errorf("reported: %v", b)
						}
					}
					return names
				}
				for _, of := range []*lake.Lake{l, asked} {
					if have := reported(of); !slices.Equal(have, []string{tables.OrdersEvents.Name}) {
						t.Errorf("reported: %v", have)
					}
				}
				if what == "data file" { // without a manifest nothing can be added to it
					s.mustTrade(t, 20)
					s.landed(t, l)
					if have := stoppedTables(l); len(have) > 0 {
						t.Errorf("stopped: %v", l.Stopped())
					}
				}
				for _, other := range []string{tables.OrderLines.Name, tables.OrdersCurrent.Name} {
					if _, err := l.Digest(t.Context(), other); err != nil {
						t.Errorf("%s: %v", other, err)
					}
					if err := l.Check(t.Context(), declare.Identifier(other)); err != nil {
						t.Errorf("%s: %v", other, err)
					}
				}
				if err := os.WriteFile(lost, content, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := l.Check(t.Context(), tables.OrdersEvents.Identifier()); err != nil {
					t.Error(err)
				}
				for _, of := range []*lake.Lake{l, asked} {
					eventually(t, func() error {
						if have := reported(of); len(have) > 0 {
							return fmt.Errorf("reported: %v", have)
						}
						return nil
					})
				}
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
			})
		}
	}
}

// oneFile returns a file of a table: a data file of its first commit, or the manifest that refers
// to it.
func oneFile(t *testing.T, l *lake.Lake, of declare.Table, what string) string {
	t.Helper()
	if what == "data file" {
		files, err := l.Files(t.Context(), of.Identifier())
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files: %v", len(files), err)
		}
		return files[0].Path
	}
	have, err := l.Load(t.Context(), of.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	files, err := have.FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := have.CurrentSnapshot().Manifests(files)
	if err != nil || len(manifests) == 0 {
		t.Fatalf("%d manifests: %v", len(manifests), err)
	}
	return manifests[len(manifests)-1].FilePath()
}
