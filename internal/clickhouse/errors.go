package clickhouse

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Error is what ClickHouse answers when a query fails.
type Error struct {
	Code    int    // ClickHouse's own: 60
	Name    string // of the code: "UNKNOWN_TABLE"; may be empty
	Message string // without code and name
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s (ClickHouse error %d)", e.Message, e.Code)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Name)
}

// Codes that callers decide by, and those that the engine answers itself.
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
	CodeTooMany          = 202 // queries at a time
	CodeOverloaded       = 745
	CodeNoThread         = 439
	CodeMemoryLimit      = 241 // of the query, or of all of them: see Error.Busy
	CodeTooManyRows      = 158
	CodeTooManyBytes     = 307 // read, or of the query itself
	CodeTooManyResults   = 396
	CodeTooSlow          = 160
	CodeAborted          = 236 // the server is being stopped
	CodeSystem           = 425
	CodeNoMemory         = 173
	CodeDNS              = 198
	CodeNoConnection     = 279
	CodeCancelled        = 394
	CodeAccessDenied     = 497
	CodeS3               = 499
	CodeAuthentication   = 516
	CodeBadArguments     = 36
	CodeStd              = 1001 // an error of C++'s library, of the file system for one
	CodeUnknownException = 1002
)

// ofAllQueries are signs that what all queries of the server together may take is used up.
var ofAllQueries = regexp.MustCompile(`(?i)\(total\)|total memory limit|\bfor user\b`)

// Busy reports whether the server has too much to do for this query now: later it may run.
func (e *Error) Busy() bool {
	switch e.Code {
	case CodeTooMany, CodeOverloaded, CodeNoThread:
		return true
	case CodeMemoryLimit:
		return ofAllQueries.MatchString(e.Message)
	}
	return false
}

var (
	errorHead = regexp.MustCompile(`^Code: (\d+)\. DB::Exception: `)
	errorTail = regexp.MustCompile(`\s*\(version [^()]*(?:\(official build\))?\)\.?\s*$`)
	errorName = regexp.MustCompile(`\s*\(([A-Z][A-Z0-9_]+)\)\s*$`)
)

// ParseError reads ClickHouse's text of an error: "Code: 60. DB::Exception: … (UNKNOWN_TABLE)".
// Text of another form becomes the message of an Error with code 1002, ClickHouse's own for what
// has no code.
func ParseError(text string) *Error {
	e := &Error{Code: CodeUnknownException}
	text, _, _ = strings.Cut(text, ", Stack trace (when copying this message")
	text = strings.TrimSpace(text)
	for first := true; ; first = false { // an error that passed through several hands repeats the frame
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
