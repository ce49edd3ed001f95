package lake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
)

// Why a table is not landed, the process that does not land it knows, and it may be another one that is asked. So it is
// written where both look, and where it can be read though nothing else of the table can: among the properties of the
// table's namespace.

// propFault begins the property of a namespace that says why one of its tables is not landed; the table's name follows.
const propFault = "millrace.fault."

// A fault is written again whenever the table was looked at. One that was not for so long is of a process that is gone,
// or that lands the table again and could not say so.
const faultHolds = 10 * LookAgain

// mostFault bounds each text of a fault that is written: catalogs have columns for so much.
const mostFault = 2000

// writtenFault is a fault as it is written.
type writtenFault struct {
	Reason string    `json:"reason"`
	Remedy string    `json:"remedy"`
	At     time.Time `json:"at"` // when it was last found
}

// told is a fault that another process has written.
type told string

func (t told) Error() string { return string(t) }

// Stop notes that a table cannot be landed, for this process and for those that are asked.
func (l *Lake) Stop(ctx context.Context, t declare.Table, fault *faults.TableError) {
	if l.stopped.put(fault) {
		l.log.Error("a table is not landed", "table", fault.Table, "reason", fault.Err, "remedy", fault.Remedy)
	}
	l.writeFault(ctx, t, nil, iceberg.Properties{propFault + t.Name: written(fault)})
}

// written is a fault as properties have it.
func written(e *faults.TableError) string {
	b, err := json.Marshal(writtenFault{cut(e.Err.Error()), cut(e.Remedy), time.Now().UTC()})
	if err != nil {
		panic(err) // texts and a time
	}
	return string(b)
}

// LandsAgain clears a recorded fault, whichever process recorded it.
func (l *Lake) LandsAgain(ctx context.Context, t declare.Table) {
	l.writeFault(ctx, t, []string{propFault + t.Name}, nil)
	if l.stopped.clear(t.DisplayName()) {
		l.log.Info("the table is landed again", "table", t.DisplayName())
	}
}

// writeFault changes the fault that other processes see, and reports whether it could.
func (l *Lake) writeFault(ctx context.Context, t declare.Table, removals []string, updates iceberg.Properties) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	_, err := l.catalog.UpdateNamespaceProperties(ctx, catalog.NamespaceFromIdent(t.Identifier()), removals, updates)
	if err != nil && (len(updates) > 0 || !errors.Is(err, catalog.ErrNoSuchNamespace)) {
		l.log.Warn("how a table is could not be written down for other processes", "table", t.DisplayName(), "error", err)
		return false
	}
	return true
}

// faultsOf are the faults of tables that any process has written lately and not taken back, by the names of the tables.
func (l *Lake) faultsOf(ctx context.Context, tables []declare.Table) (map[string]*faults.TableError, error) {
	return l.writtenFaults(ctx, tables, propFault, faultHolds)
}

// writtenFaults are those under a prefix, as far as they hold.
func (l *Lake) writtenFaults(ctx context.Context, tables []declare.Table, prefix string, holds time.Duration) (map[string]*faults.TableError, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var found map[string]*faults.TableError
	read := map[string]iceberg.Properties{} // by namespace
	for _, t := range tables {
		namespace := catalog.NamespaceFromIdent(t.Identifier())
		key := strings.Join(namespace, "\x1f")
		props, ok := read[key]
		if !ok {
			var err error
			props, err = l.catalog.LoadNamespaceProperties(ctx, namespace)
			if err != nil && !errors.Is(err, catalog.ErrNoSuchNamespace) && !postgres.NoTable(err) {
				return nil, fmt.Errorf("properties of namespace %s: %w", strings.Join(namespace, "."), err)
			}
			read[key] = props
		}
		if fault := readFault(t, props[prefix+t.Name], time.Now().Add(-holds)); fault != nil {
			if found == nil {
				found = map[string]*faults.TableError{}
			}
			found[fault.Table] = fault
		}
	}
	return found, nil
}

func readFault(t declare.Table, text string, since time.Time) *faults.TableError {
	var w writtenFault
	err := json.Unmarshal([]byte(text), &w)
	if err != nil || w.Reason == "" || w.At.Before(since) {
		return nil //nolint:nilerr // what nobody can read says nothing
	}
	return &faults.TableError{Table: t.DisplayName(), Remedy: w.Remedy, Err: told(w.Reason)}
}

// writtenOf is the same of one table, and nothing where it cannot be read.
func (l *Lake) writtenOf(ctx context.Context, t declare.Table, prefix string, holds time.Duration) map[string]*faults.TableError {
	faults, err := l.writtenFaults(ctx, []declare.Table{t}, prefix, holds)
	if err != nil {
		return nil
	}
	return faults
}

// HasFault reports whether a process has recorded that a table is not landed.
func (l *Lake) HasFault(ctx context.Context, t declare.Table) bool {
	return len(l.writtenOf(ctx, t, propFault, faultHolds)) > 0
}

// addFaults adds what is not among them yet.
func addFaults(to []*faults.TableError, more ...*faults.TableError) []*faults.TableError {
	for _, fault := range more {
		if !slices.ContainsFunc(to, func(b *faults.TableError) bool { return b.Table == fault.Table }) {
			to = append(to, fault)
		}
	}
	return to
}

// cut is a text of at most mostFault bytes.
func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), mostFault)], "") }

// faultSet are the tables that are not landed, and why. The zero value has none.
type faultSet struct {
	mu sync.Mutex
	by map[string]*faults.TableError
}

// put records a fault, and reports whether it is new.
func (f *faultSet) put(fault *faults.TableError) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[string]*faults.TableError{}
	}
	had := f.by[fault.Table]
	f.by[fault.Table] = fault
	return had == nil || had.Error() != fault.Error()
}

// clear removes a table's fault, and reports whether there was one.
func (f *faultSet) clear(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, had := f.by[name]
	delete(f.by, name)
	return had
}

func (f *faultSet) of(name string) *faults.TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[name]
}

func (f *faultSet) all() []*faults.TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.by), byTable)
}

func byTable(a, b *faults.TableError) int { return strings.Compare(a.Table, b.Table) }

// Stopped tells which tables this process cannot land, and why.
func (l *Lake) Stopped() []*faults.TableError { return l.stopped.all() }

// LookAgain is how often a table is looked at that could not be landed: somebody may have helped.
const LookAgain = 30 * time.Second

// Fault says why this process cannot land a table; nil where it can.
func (l *Lake) Fault(t declare.Table) *faults.TableError { return l.stopped.of(t.DisplayName()) }
