package sql

import (
	"regexp"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// engineErrors are the error codes that are not the query's fault, unless refused reports otherwise. All
// other codes are: an unknown error of the engine is most likely about the query. For overload, see
// clickhouse.Error.Busy.
var engineErrors = map[int]bool{
	clickhouse.CodeUnknownException: true, clickhouse.CodeCancelled: true,
	clickhouse.CodeAborted: true, clickhouse.CodeSystem: true,
	clickhouse.CodeNoMemory: true, clickhouse.CodeDNS: true, clickhouse.CodeNoConnection: true,
	clickhouse.CodeFileDoesntExist: true, clickhouse.CodeStd: true,
	clickhouse.CodeAuthentication: true, clickhouse.CodeS3: true,
	clickhouse.CodeCannotRead: true, clickhouse.CodeCannotWrite: true,
	clickhouse.CodeCannotOpen: true, clickhouse.CodeNoSpace: true,
	clickhouse.CodeSocketTimeout: true, clickhouse.CodeNetwork: true,
}

// machineError matches errors of C++ libraries about the engine's own files, memory or connections.
var machineError = regexp.MustCompile(`(?i)filesystem|no such file|permission denied|` +
	`no space|input/output|bad_alloc|Poco::(?:File|IO|Net::(?:Connection|NoMessage|Socket|DNS|Host)|Timeout)|` +
	`system_error|too many open files`)

// refused reports whether an error of a library behind ClickHouse is about the query: it needs a
// model, dictionary, certificate or program that does not exist here, or an argument is invalid.
func refused(e *clickhouse.Error) bool {
	return e.Code == clickhouse.CodeStd && !machineError.MatchString(e.Message)
}

// inFile matches the part of an error message that describes the file being read. Filters of a
// query are evaluated while a file is read, too; then the message also names the function.
var inFile = regexp.MustCompile(`(?s)(?:: read stage: [^:]*(?:: column: [^:]*)?)?: \(in file/uri ([^)]*)\).*`)

// limits are the error codes of queries that exceed a limit.
var limits = map[int]bool{
	clickhouse.CodeMemoryLimit: true, clickhouse.CodeTimeout: true,
	clickhouse.CodeTooSlow: true, clickhouse.CodeTooManyRows: true,
	clickhouse.CodeTooManyBytes: true, clickhouse.CodeTooManyResults: true,
}

// damagedFile returns the file of a table that the engine cannot read, or "" if the error has
// another cause.
func damagedFile(e *clickhouse.Error) string {
	m := inFile.FindStringSubmatch(e.Message)
	if m == nil || limits[e.Code] || badDate.MatchString(e.Message) || machineError.MatchString(e.Message) ||
		strings.Contains(e.Message, "while executing 'FUNCTION") {
		return ""
	}
	return m[1]
}
