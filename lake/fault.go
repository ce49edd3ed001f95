package lake

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/aws/smithy-go"

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/location"
)

// What fails in a landing is one of three kinds, which say what is done about it:
//
//   - It passes by itself: a server is away, a disk is full, another lander was faster. It is tried again. So is what nobody knows.
//   - It is of a record: the record is parked, and the others land. Rows.Append names the record. Where rows cannot be written or
//     staged, nobody does (see rowsError), and the lander finds the record by halving what it lands (see sift.go).
//   - It is of the table: see TableError. Only that table's landing stops.

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

const (
	remedyLost    = "restore the file, or drop the table: started again, landers land it anew"
	remedyCycle   = "set the branch to a snapshot outside the cycle, or drop the table: started again, landers land it anew"
	remedyOffsets = "restore the topic or the table's properties, or drop the table to land it anew"
	remedyGone    = "start the lander again to land it anew"
	remedyDenied  = "give the lander the right to write the table's files and its row in the catalog"
	remedyCommit  = "see to the catalog and the warehouse, whose answer this is; commits are tried again from time to time"
	remedyOutside = "move the file into the table's folder and let its metadata say so, or roll the table back to a snapshot before it"
	remedyFit     = "take back the change of the table's columns, partitions or properties, or land in another table"
)

// tableError gives an error of a table as a *TableError; nil where it is none.
func tableError(name string, err error) *TableError {
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
		return &TableError{Table: name, Err: stuck, Remedy: remedyFit}
	case errors.As(err, &refused):
		return &TableError{Table: name, Err: err, Remedy: remedyFit}
	case errors.Is(err, catalog.ErrNoSuchTable), errors.Is(err, catalog.ErrNoSuchNamespace):
		return &TableError{Table: name, Err: err, Remedy: remedyGone}
	case unreadable(err):
		return &TableError{Table: name, Err: err, Remedy: remedyLost}
	case errors.Is(err, location.ErrOutside):
		return &TableError{Table: name, Err: err, Remedy: remedyOutside}
	case denied(err):
		return &TableError{Table: name, Err: err, Remedy: remedyDenied}
	}
	return nil
}

// unreadable reports whether what a table is made of is lost or damaged.
func unreadable(err error) bool {
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

// passes reports whether an error is of what a landing needs, rather than of what it lands.
func passes(err error) bool {
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

// rowsError says that rows cannot be written, or not be staged for a commit, and not which of them.
type rowsError struct{ err error }

func (e *rowsError) Error() string { return e.err.Error() }

func (e *rowsError) Unwrap() error { return e.err }

// ofRows marks an error of writing rows, unless it can pass or is the table's.
func ofRows(err error) error {
	if err == nil || passes(err) || unreadable(err) {
		return err
	}
	return &rowsError{err}
}

func isOfRows(err error) bool {
	var of *rowsError
	return errors.As(err, &of)
}

// faults are the tables that are not landed, and why. The zero value has none.
type faults struct {
	mu sync.Mutex
	by map[string]*TableError
}

// put records a fault, and reports whether it is new.
func (f *faults) put(fault *TableError) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[string]*TableError{}
	}
	had := f.by[fault.Table]
	f.by[fault.Table] = fault
	return had == nil || had.Error() != fault.Error()
}

// clear removes a table's fault, and reports whether there was one.
func (f *faults) clear(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, had := f.by[name]
	delete(f.by, name)
	return had
}

func (f *faults) of(name string) *TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[name]
}

func (f *faults) all() []*TableError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.by), byTable)
}

func byTable(a, b *TableError) int { return strings.Compare(a.Table, b.Table) }

// Stopped tells which tables this process cannot land, and why.
func (l *Lake) Stopped() []*TableError { return l.stopped.all() }
