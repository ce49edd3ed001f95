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

// Only the process that fails to land a table knows the reason, but a request may reach another
// process. So faults are recorded in a shared place that is readable even if the table itself is
// not: the properties of the table's namespace.

// propFault is the prefix of the namespace property that records why a table is not landed. The
// table's name follows.
const propFault = "millrace.fault."

// faultTTL is the age up to which a recorded fault is valid. A fault is recorded again at each
// failed attempt. An older one is from a process that ended, or that lands the table again but
// could not clear the fault.
const faultTTL = 10 * RetryInterval

// maxFaultText is the maximum size in bytes of each text of a recorded fault. Columns of catalogs
// are limited.
const maxFaultText = 2000

// recordedFault is the JSON form of a fault.
type recordedFault struct {
	Reason string    `json:"reason"`
	Remedy string    `json:"remedy"`
	At     time.Time `json:"at"` // time of the last failed attempt
}

// recordedError is an error that another process has recorded.
type recordedError string

func (e recordedError) Error() string { return string(e) }

// Stop records that a table cannot be landed, for this process and for others.
func (l *Lake) Stop(ctx context.Context, t declare.Table, fault *faults.TableError) {
	if l.stopped.put(fault) {
		l.log.Error("table cannot be landed", "table", fault.Table, "reason", fault.Err, "remedy", fault.Remedy)
	}
	l.recordFault(ctx, t, nil, iceberg.Properties{propFault + t.Name: encodeFault(fault)})
}

// encodeFault encodes a fault as a property value.
func encodeFault(e *faults.TableError) string {
	b, err := json.Marshal(recordedFault{truncate(e.Err.Error()), truncate(e.Remedy), time.Now().UTC()})
	if err != nil {
		panic(err) // cannot happen for strings and a time
	}
	return string(b)
}

// ClearFault clears a recorded fault, whichever process recorded it.
func (l *Lake) ClearFault(ctx context.Context, t declare.Table) {
	l.recordFault(ctx, t, []string{propFault + t.Name}, nil)
	if l.stopped.clear(t.DisplayName()) {
		l.log.Info("table lands again", "table", t.DisplayName())
	}
}

// recordFault updates the recorded faults and reports whether that succeeded. It ignores
// cancellation of ctx, so that a fault can still be recorded during a shutdown.
func (l *Lake) recordFault(ctx context.Context, t declare.Table, removals []string, updates iceberg.Properties) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	_, err := l.catalog.UpdateNamespaceProperties(ctx, catalog.NamespaceFromIdent(t.Identifier()), removals, updates)
	if err != nil && (len(updates) > 0 || !errors.Is(err, catalog.ErrNoSuchNamespace)) {
		l.log.Warn("cannot update the recorded fault of the table", "table", t.DisplayName(), "error", err)
		return false
	}
	return true
}

// faultsOf returns the recorded faults that are valid, from any process, by display name.
func (l *Lake) faultsOf(ctx context.Context, tables []declare.Table) (map[string]*faults.TableError, error) {
	return l.recordedFaults(ctx, tables, propFault, faultTTL)
}

// recordedFaults returns the recorded faults under a prefix that are younger than ttl.
func (l *Lake) recordedFaults(
	ctx context.Context, tables []declare.Table, prefix string, ttl time.Duration,
) (map[string]*faults.TableError, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var found map[string]*faults.TableError
	// Most tables share a namespace, so each is read once.
	read := map[string]iceberg.Properties{} // by namespace
	for _, t := range tables {
		namespace := catalog.NamespaceFromIdent(t.Identifier())
		key := strings.Join(namespace, "\x1f")
		props, ok := read[key]
		if !ok {
			var err error
			props, err = l.catalog.LoadNamespaceProperties(ctx, namespace)
			if err != nil && !errors.Is(err, catalog.ErrNoSuchNamespace) && !postgres.UndefinedTable(err) {
				return nil, fmt.Errorf("read the properties of namespace %s: %w", strings.Join(namespace, "."), err)
			}
			read[key] = props
		}
		if fault := readFault(t, props[prefix+t.Name], time.Now().Add(-ttl)); fault != nil {
			if found == nil {
				found = map[string]*faults.TableError{}
			}
			found[fault.Table] = fault
		}
	}
	return found, nil
}

// readFault parses a recorded fault, or returns nil if it is malformed or too old.
func readFault(t declare.Table, text string, since time.Time) *faults.TableError {
	var w recordedFault
	err := json.Unmarshal([]byte(text), &w)
	if err != nil || w.Reason == "" || w.At.Before(since) {
		return nil //nolint:nilerr // a malformed record is ignored
	}
	return &faults.TableError{Table: t.DisplayName(), Remedy: w.Remedy, Err: recordedError(w.Reason)}
}

// recordedOf returns the recorded faults of one table, or nothing if they cannot be read.
func (l *Lake) recordedOf(
	ctx context.Context, t declare.Table, prefix string, ttl time.Duration,
) map[string]*faults.TableError {
	faults, err := l.recordedFaults(ctx, []declare.Table{t}, prefix, ttl)
	if err != nil {
		return nil
	}
	return faults
}

// HasFault reports whether any process has recorded that a table is not landed.
func (l *Lake) HasFault(ctx context.Context, t declare.Table) bool {
	return len(l.recordedOf(ctx, t, propFault, faultTTL)) > 0
}

// addFaults appends faults of tables that have none in the list yet.
func addFaults(to []*faults.TableError, more ...*faults.TableError) []*faults.TableError {
	for _, fault := range more {
		if !slices.ContainsFunc(to, func(b *faults.TableError) bool { return b.Table == fault.Table }) {
			to = append(to, fault)
		}
	}
	return to
}

// truncate truncates a text to maxFaultText bytes.
func truncate(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxFaultText)], "") }

// faultSet is a set of faults by table. The zero value is empty. It is safe for concurrent use.
type faultSet struct {
	mu sync.Mutex
	by map[string]*faults.TableError
}

// put records a fault and reports whether it differs from the previous one, so that callers log it
// once.
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

// clear removes a table's fault and reports whether there was one.
func (f *faultSet) clear(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, had := f.by[name]
	delete(f.by, name)
	return had
}

// of returns the fault of a table, or nil.
func (f *faultSet) of(name string) *faults.TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[name]
}

// all returns all faults, sorted by table.
func (f *faultSet) all() []*faults.TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.by), byTable)
}

func byTable(a, b *faults.TableError) int { return strings.Compare(a.Table, b.Table) }

// Stopped returns the faults of tables that this process cannot land.
func (l *Lake) Stopped() []*faults.TableError { return l.stopped.all() }

// RetryInterval is the interval at which landing of a stopped table is tried again, in case the
// fault was repaired.
const RetryInterval = 30 * time.Second

// Fault returns the reason why this process cannot land a table, or nil.
func (l *Lake) Fault(t declare.Table) *faults.TableError { return l.stopped.of(t.DisplayName()) }
