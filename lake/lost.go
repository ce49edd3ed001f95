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

// A data file that is lost stops no lander whose table only grows, so nothing would report it. Any reader that meets
// it, a verification, a query or maintenance, has the table checked, and what is found is written where faults are (see
// faultlog.go), beside them: the table is landed on.

// propLost is the property of a namespace that says which files of one of its tables are lost; the table's name
// follows.
const propLost = "millrace.lost."

// What is lost stays so until somebody has checked again.
const lostHolds = 7 * 24 * time.Hour

// Check looks whether all files are there that a table needs. Where some are not, the error is a *TableError, and Look
// has it from then on, until a check finds them all.
func (l *Lake) Check(ctx context.Context, name Name) error {
	t := declare.Table{Namespace: declare.NamespaceOf(name), Name: name[len(name)-1]}
	err := maintenance.CheckFiles(ctx, l.loader(name))
	if err == nil {
		had := l.lost.clear(t.DisplayName())
		if had || len(l.writtenOf(ctx, t, propLost, lostHolds)) > 0 {
			l.log.Info("all files of the table are there again", "table", t.DisplayName())
			l.writeFault(ctx, t, []string{propLost + t.Name}, nil)
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
			return fault // Look finds it as well
		}
		return err
	}
	if l.lost.put(fault) {
		l.log.Error("a table is damaged", "table", fault.Table, "reason", fault.Err, "remedy", fault.Remedy)
	}
	if l.writeFault(ctx, t, nil, iceberg.Properties{propLost + t.Name: written(fault)}) {
		l.lost.clear(t.DisplayName()) // the process that finds the files again clears the recorded fault
	}
	return fault
}

// checkAfter has a table checked that could not be read, and returns what is found, or else the error of the reading.
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
