// Package faults tells the errors of a landing apart by what is to be done about them. There are
// three kinds:
//
//   - It passes by itself: a server is away, a disk is full, another lander was faster. It is tried
//     again. So is an error of an unknown kind. See Passes.
//   - It is of a record: the record becomes a dead letter, and the others land. Rows.Append names
//     the record. If rows cannot be written or staged, nobody does: see RowsError. The lander then
//     finds the record by halving the batch.
//   - It is of a table: see TableError and Of. Only that table's landing stops. The error says what
//     a person can do.
package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/aws/smithy-go"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/location"
)

// TableError says why a table cannot be read or landed as it is, and what a person can do about it. Other tables are
// not concerned.
type TableError struct {
	Table  string // as TableState names it
	Remedy string
	Err    error // the reason
}

func (e *TableError) Error() string {
	reason := e.Err.Error()
	if !strings.Contains(reason, e.Table) {
		reason = "table " + e.Table + ": " + reason
	}
	return reason + "; " + e.Remedy
}

func (e *TableError) Unwrap() error { return e.Err }

// What a person can do about faults.
const (
	RemedyLost    = "restore the file, or drop the table: started again, landers land it anew"
	RemedyCycle   = "set the branch to a snapshot outside the cycle, or drop the table: started again, landers land it anew"
	RemedyOffsets = "restore the topic or the table's properties, or drop the table to land it anew"
	remedyGone    = "start the lander again to land it anew"
	RemedyDenied  = "give the lander the right to write the table's files and its row in the catalog"
	RemedyCommit  = "see to the catalog and the warehouse, whose answer this is; commits are tried again from time to time"
	RemedyOutside = "move the file into the table's folder and let its metadata say so, or roll the table back to a snapshot before it"
	RemedyFit     = "take back the change of the table's columns, partitions or properties, or land in another table"
)

// Of gives an error of a table as a *TableError; nil where it is none.
func Of(name string, err error) *TableError {
	var already *TableError
	var position *PositionError
	var refused *evolution.RefusedError
	var stuck *UnwritableError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &already):
		return already
	case errors.As(err, &position):
		return &TableError{Table: name, Err: position, Remedy: position.Remedy()}
	case errors.As(err, &stuck):
		return &TableError{Table: name, Err: stuck, Remedy: RemedyFit}
	case errors.As(err, &refused):
		return &TableError{Table: name, Err: err, Remedy: RemedyFit}
	case errors.Is(err, catalog.ErrNoSuchTable), errors.Is(err, catalog.ErrNoSuchNamespace):
		return &TableError{Table: name, Err: err, Remedy: remedyGone}
	case Unreadable(err):
		return &TableError{Table: name, Err: err, Remedy: RemedyLost}
	case errors.Is(err, location.ErrOutside):
		return &TableError{Table: name, Err: err, Remedy: RemedyOutside}
	case denied(err):
		return &TableError{Table: name, Err: err, Remedy: RemedyDenied}
	}
	return nil
}

// Unreadable reports whether what a table is made of is lost or damaged.
func Unreadable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, table.ErrInvalidMetadata) ||
		errors.Is(err, table.ErrInvalidMetadataFormatVersion) || errors.Is(err, iceberg.ErrInvalidSchema)
}

// denied reports whether the lander may not write or read a table.
func denied(err error) bool {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || postgres.Denied(err) {
		return true
	}
	var service smithy.APIError
	return errors.As(err, &service) && slices.Contains(denials, service.ErrorCode())
}

// denials are S3's codes for what stays as it is until somebody changes a right, a key, or the bucket.
var denials = []string{"AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"}

// Passes reports whether an error is of what a landing needs, rather than of what it lands.
func Passes(err error) bool {
	var path *fs.PathError
	var network net.Error
	var number syscall.Errno
	var service *smithy.OperationError
	switch {
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EILSEQ):
		return false // of a name that was made of a record
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, table.ErrCommitFailed),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, io.ErrShortWrite): // of an upload that broke off
		return true
	}
	return errors.As(err, &path) || errors.As(err, &network) || errors.As(err, &number) || errors.As(err, &service)
}

// RowsError says that rows cannot be written, or not be staged for a commit, and not which of them.
type RowsError struct{ Err error }

func (e *RowsError) Error() string { return e.Err.Error() }

func (e *RowsError) Unwrap() error { return e.Err }

// OfRows marks an error of writing rows, unless it can pass or is the table's.
func OfRows(err error) error {
	if err == nil || Passes(err) || Unreadable(err) {
		return err
	}
	return &RowsError{err}
}

// IsOfRows reports whether an error wraps a *RowsError.
func IsOfRows(err error) bool {
	var of *RowsError
	return errors.As(err, &of)
}

// OwnedError says that a table is landed from another topic. Two of them in one would be told apart by no reader.
type OwnedError struct {
	Table string // with its namespace
	Topic string // that it belongs to
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("table %s belongs to topic %s; choose another with --table", e.Table, e.Topic)
}

// PositionError says that a table and its topic do not belong together: the topic was truncated or made anew, or lost
// what the table still needs. Landing on would lose or repeat rows, so a person must decide.
type PositionError struct {
	Table string
	Topic string
	Err   error // names both offsets, or both topics
}

func (e *PositionError) Error() string {
	if owned := (*OwnedError)(nil); errors.As(e.Err, &owned) {
		return owned.Error()
	}
	return fmt.Sprintf("table %s does not fit topic %s: %v", e.Table, e.Topic, e.Err)
}

// Remedy is what a person can do.
func (e *PositionError) Remedy() string {
	if owned := (*OwnedError)(nil); errors.As(e.Err, &owned) {
		return "land this topic in another table"
	}
	for _, a := range event.Aggregates() {
		if a.Topic == e.Topic {
			return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, which makes the topic, its views and "+
				"its tables from the event store", a.Service)
		}
	}
	return "restore the topic, or set the table's property millrace.released to true, drop it through the catalog and start the lander again to land it anew"
}

func (e *PositionError) Unwrap() error { return e.Err }

// UnwritableError says that landers cannot write a table as it is. Trying again does not help: somebody must change the
// table.
type UnwritableError struct {
	Table string
	Err   error // the reason
}

func (e *UnwritableError) Error() string {
	return fmt.Sprintf("landers cannot write table %s: %v; take that out of the table, which the catalog lets you do", e.Table, e.Err)
}

func (e *UnwritableError) Unwrap() error { return e.Err }
