package lake

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
)

// A missing data file does not stop landers of an append-only table, so nothing would report it.
// Readers that notice it (a verification, a query, or maintenance) have the table checked. The
// result is recorded beside faults (see faultlog.go), but under a separate property, because the
// table is still landed.

// propLost is the prefix of the namespace property that records missing files of a table. The
// table's name follows.
const propLost = "millrace.lost."

// lostTTL is the age up to which a recorded loss is reported. Missing files rarely return, so it
// is long.
const lostTTL = 7 * 24 * time.Hour

// Check verifies that all files of a table exist. If some are missing, the error is a *TableError.
// Report reports it from then on, until a check finds all files.
func (l *Lake) Check(ctx context.Context, name Name) error {
	t := declare.Table{Namespace: declare.NamespaceOf(name), Name: name[len(name)-1]}
	err := maintenance.CheckFiles(ctx, l.loader(name))
	if err == nil {
		// Clear the record only if there was one, so that regular checks do not write to the
		// catalog.
		had := l.lost.clear(t.DisplayName())
		if had || len(l.recordedOf(ctx, t, propLost, lostTTL)) > 0 {
			l.log.Info("all files of the table exist again", "table", t.DisplayName())
			l.recordFault(ctx, t, []string{propLost + t.Name}, nil)
		}
		return nil
	}
	fault := &faults.TableError{Table: t.DisplayName()}
	var lost *maintenance.LostError
	var cycle *maintenance.CycleError
	switch {
	case errors.As(err, &lost):
		fault.Err, fault.Remedy = lost, faults.RemedyLost
	case errors.As(err, &cycle):
		fault.Err, fault.Remedy = cycle, faults.RemedyCycle
	default:
		if fault := faults.Of(t.DisplayName(), err); fault != nil {
			return fault // Report reports it, too
		}
		return err
	}
	if l.lost.put(fault) {
		l.log.Error("table is damaged", "table", fault.Table, "reason", fault.Err, "remedy", fault.Remedy)
	}
	if l.recordFault(ctx, t, nil, iceberg.Properties{propLost + t.Name: encodeFault(fault)}) {
		// The recorded fault is enough; any process that finds the files again can clear it.
		l.lost.clear(t.DisplayName())
	}
	return fault
}

// checkAfter checks a table after a failed read. It returns the fault found, or else the read
// error.
func (l *Lake) checkAfter(ctx context.Context, name Name, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var fault *faults.TableError
	if errors.As(l.Check(ctx, name), &fault) {
		return fault
	}
	return err
}
