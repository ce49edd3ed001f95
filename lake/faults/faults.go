// Package faults classifies the errors of a landing by their remedy. There are three kinds:
//
//   - Temporary errors: a server is unreachable, a disk is full, another lander was faster. They
//     are retried, and so are unclassified errors for a while. See IsTemporary.
//   - Errors of a record: it becomes a dead letter and the others land. Rows.Append identifies the
//     record. If writing or staging rows fails, the record is unknown (see RowsError), and the
//     lander finds it by halving the batch.
//   - Faults of a table: see TableError and Of. Only that table stops, and the error says what an
//     operator can do.
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

// TableError is the reason why a table cannot be read or landed, with a remedy for an operator.
// Other tables are not affected.
type TableError struct {
	Table  string // the table's display name
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

// Remedies for an operator.
const (
	RemedyLost  = "restore the file, or drop the table and restart the landers to land it from the beginning"
	RemedyCycle = "set the branch to a snapshot outside the cycle, or drop the table and restart the landers " +
		"to land it from the beginning"
	RemedyOffsets = "restore the topic or the table's properties, or drop the table to land it from the beginning"
	remedyGone    = "restart the lander to land it from the beginning"
	RemedyDenied  = "grant the lander write access to the table's files and to its row in the catalog"
	RemedyCommit  = "check the catalog and the warehouse, which returned this error; commits are retried periodically"
	RemedyOutside = "move the file into the table's folder and update the metadata, " +
		"or roll the table back to a snapshot before it"
	RemedyFit = "revert the change of the table's columns, partitions or properties, or land in another table"
)

// Of returns an error as a *TableError, or nil if it is not a fault of a table.
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

// Unreadable reports whether a file or the metadata of a table is missing or damaged.
func Unreadable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, table.ErrInvalidMetadata) ||
		errors.Is(err, table.ErrInvalidMetadataFormatVersion) || errors.Is(err, iceberg.ErrInvalidSchema)
}

// denied reports whether access to a table was denied.
func denied(err error) bool {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || postgres.Denied(err) {
		return true
	}
	var service smithy.APIError
	return errors.As(err, &service) && slices.Contains(denials, service.ErrorCode())
}

// denials are S3 error codes that persist until permissions, keys or the bucket are changed.
var denials = []string{
	"AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch",
	"NoSuchBucket",
}

// IsTemporary reports whether an error is temporary: caused by the environment of a landing, not by
// its data or table.
func IsTemporary(err error) bool {
	var path *fs.PathError
	var network net.Error
	var number syscall.Errno
	var service *smithy.OperationError
	switch {
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EILSEQ):
		return false // file names are made of values of records
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, table.ErrCommitFailed),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, io.ErrShortWrite): // an aborted upload
		return true
	}
	return errors.As(err, &path) || errors.As(err, &network) || errors.As(err, &number) || errors.As(err, &service)
}

// RowsError reports that writing or staging rows failed without identifying the row.
type RowsError struct{ Err error }

func (e *RowsError) Error() string { return e.Err.Error() }

func (e *RowsError) Unwrap() error { return e.Err }

// AsRowsError wraps an error of writing rows as a *RowsError, unless it is temporary or a fault of
// the table.
func AsRowsError(err error) error {
	if err == nil || IsTemporary(err) || Unreadable(err) {
		return err
	}
	// What is neither temporary nor a fault of the table must come from the rows.
	return &RowsError{err}
}

// IsRowsError reports whether an error wraps a *RowsError.
func IsRowsError(err error) bool {
	var of *RowsError
	return errors.As(err, &of)
}

// OwnedError reports that a table is already landed from another topic. Readers could not tell the
// rows of two topics apart.
type OwnedError struct {
	Table string // including the namespace
	Topic string // topic that feeds it
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("table %s belongs to topic %s; choose another with --table", e.Table, e.Topic)
}

// PositionError reports that a table and its topic do not match: the topic was truncated,
// recreated, or has lost records that the table still needs. Continuing would lose or repeat rows,
// so an operator must decide.
type PositionError struct {
	Table string
	Topic string
	Err   error // has both offsets or both topics
}

func (e *PositionError) Error() string {
	if owned := (*OwnedError)(nil); errors.As(e.Err, &owned) {
		return owned.Error()
	}
	return fmt.Sprintf("table %s does not match topic %s: %v", e.Table, e.Topic, e.Err)
}

// Remedy returns what an operator can do.
func (e *PositionError) Remedy() string {
	if owned := (*OwnedError)(nil); errors.As(e.Err, &owned) {
		return "land this topic in another table"
	}
	for _, a := range event.Aggregates() {
		if a.Topic == e.Topic {
			return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, "+
				"which recreates the topic, its views and its tables from the event store", a.Service)
		}
	}
	return "restore the topic, or land it from the beginning: set the table's property millrace.released to true, " +
		"drop the table through the catalog and restart the lander"
}

func (e *PositionError) Unwrap() error { return e.Err }

// UnwritableError reports that landers cannot write a table in its current form. Retrying does not
// help: the table must be changed.
type UnwritableError struct {
	Table string
	Err   error // the reason
}

func (e *UnwritableError) Error() string {
	return fmt.Sprintf("landers cannot write table %s: %v; remove that from the table through the catalog", e.Table,
		e.Err)
}

func (e *UnwritableError) Unwrap() error { return e.Err }
