package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Error is ClickHouse's error for a failed query.
type Error struct {
	Code    int    // ClickHouse's code, for example 60
	Name    string // name of the code, for example "UNKNOWN_TABLE"; may be empty
	Message string // text without code and name
}

// Error returns the message with the name or the code.
func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s (ClickHouse error %d)", e.Message, e.Code)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Name)
}

// Codes that callers distinguish, and those that the engine itself returns.
const (
	CodeUnknownTable     = 60
	CodeSyntax           = 62
	CodeUnknownDatabase  = 81
	CodeFileDoesntExist  = 107
	CodeCannotRead       = 74 // a file
	CodeCannotWrite      = 75
	CodeCannotOpen       = 76
	CodeTimeout          = 159
	CodeSocketTimeout    = 209
	CodeNetwork          = 210
	CodeNoSpace          = 243
	CodeReadOnly         = 164
	CodeNotImplemented   = 48
	CodeTooMany          = 202 // too many concurrent queries
	CodeOverloaded       = 745
	CodeNoThread         = 439
	CodeMemoryLimit      = 241 // of the query, or of all queries; see Error.Busy
	CodeTooManyRows      = 158
	CodeTooManyBytes     = 307 // read by the query, or of the query text
	CodeTooManyResults   = 396
	CodeTooSlow          = 160
	CodeAborted          = 236 // the server is shutting down
	CodeSystem           = 425
	CodeNoMemory         = 173
	CodeDNS              = 198
	CodeNoConnection     = 279
	CodeCancelled        = 394
	CodeAccessDenied     = 497
	CodeS3               = 499
	CodeAuthentication   = 516
	CodeBadArguments     = 36
	CodeCannotDecompress = 271

	// Of inserts into a cluster, and of its DDL.
	CodeTooManyParts  = 252
	CodeTableReadOnly = 242 // the replica has lost its Keeper
	CodeNoKeeper      = 225
	CodeKeeper        = 999
	CodeUnfinishedDDL = 341
	CodeInsertUnknown = 319 // the insert may have happened

	// Of statements that do not fit the table.
	CodeNoColumn          = 8
	CodeNotInBlock        = 10
	CodeNoSuchColumn      = 16
	CodeColumnCount       = 20
	CodeUnknownIdentifier = 47
	CodeTypeMismatch      = 53

	CodeStd              = 1001 // an error of C++'s standard library, for example of the file system
	CodeUnknownException = 1002
)

// ofAllQueries matches messages about limits that apply to all queries of the server, or of the
// user, together.
var ofAllQueries = regexp.MustCompile(`(?i)\(total\)|total memory limit|\bfor user\b`)

// Busy reports whether the server is too busy for this query now. A retry later may succeed.
func (e *Error) Busy() bool {
	switch e.Code {
	case CodeTooMany, CodeOverloaded, CodeNoThread:
		return true
	case CodeMemoryLimit:
		return ofAllQueries.MatchString(e.Message)
	}
	return false
}

// retryable are the codes of conditions that pass: of the network, of the load, and of a server
// that is starting or stopping, is full, or cannot reach its cluster's Keeper.
var retryable = []int{
	CodeTimeout, CodeSocketTimeout, CodeNetwork, CodeNoSpace, CodeTooMany, CodeOverloaded, CodeNoThread,
	CodeAborted, CodeSystem, CodeNoMemory, CodeDNS, CodeNoConnection, CodeCancelled, CodeS3,
	CodeCannotWrite, CodeTooManyParts, CodeTableReadOnly, CodeNoKeeper, CodeKeeper, CodeUnfinishedDDL,
	CodeInsertUnknown,
}

// Retryable reports whether the same call may succeed later. After a failed Batch.Send
// a retry is safe, too: a batch that is in the table is not inserted again.
func Retryable(err error) bool {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Busy() || slices.Contains(retryable, e.Code)
	}
	return errors.Is(err, ErrUnreachable) || errors.Is(err, context.DeadlineExceeded)
}

// IsSchema reports whether err means that a database, a table or a column is missing or has another
// type than the statement expects.
func IsSchema(err error) bool {
	e := (*Error)(nil)
	return errors.Is(err, ErrSchema) || errors.As(err, &e) && slices.Contains(ofSchema, e.Code)
}

// ofSchema are the codes of statements that do not fit the tables.
var ofSchema = []int{
	CodeUnknownTable, CodeUnknownDatabase, CodeUnknownIdentifier, CodeTypeMismatch, CodeNoSuchColumn,
	CodeNotInBlock, CodeNoColumn, CodeColumnCount,
}

// The parts of an error text around its message.
var (
	errorHead = regexp.MustCompile(`^Code: (\d+)\. DB::Exception: `)
	errorTail = regexp.MustCompile(`\s*\(version [^()]*(?:\(official build\))?\)\.?\s*$`)
	errorName = regexp.MustCompile(`\s*\(([A-Z][A-Z0-9_]+)\)\s*$`)
)

// ParseError parses ClickHouse's text of an error: "Code: 60. DB::Exception: … (UNKNOWN_TABLE)".
// Other text becomes the message of an Error with code 1002, which ClickHouse uses for errors
// without a code.
func ParseError(text string) *Error {
	e := &Error{Code: CodeUnknownException}
	// The stack trace is for ClickHouse's developers.
	text, _, _ = strings.Cut(text, ", Stack trace (when copying this message")
	text = strings.TrimSpace(text)
	for first := true; ; first = false { // each component that passes an error on repeats the frame
		m := errorHead.FindStringSubmatch(text)
		if m == nil {
			break
		}
		if code, err := strconv.Atoi(m[1]); err == nil && first {
			e.Code = code
		}
		text = text[len(m[0]):]
		text = errorTail.ReplaceAllString(text, "")
		if n := errorName.FindStringSubmatch(text); n != nil {
			e.Name = n[1]
			text = text[:len(text)-len(n[0])]
		}
		text = errorTail.ReplaceAllString(text, "")
	}
	e.Message = text
	return e
}
