package sql

import (
	"regexp"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// ours are the codes that are not the query's fault, unless refused tells otherwise. All others
// are: an error of the engine that we do not know is about what it was asked. An engine that has
// too much to do says so in other ways, see clickhouse.Error.Busy.
var ours = map[int]bool{
	clickhouse.CodeUnknownException: true, clickhouse.CodeCancelled: true, clickhouse.CodeAborted: true, clickhouse.CodeSystem: true,
	clickhouse.CodeNoMemory: true, clickhouse.CodeDNS: true, clickhouse.CodeNoConnection: true,
	clickhouse.CodeFileDoesntExist: true, clickhouse.CodeStd: true, clickhouse.CodeAuthentication: true, clickhouse.CodeS3: true,
	clickhouse.CodeCannotRead: true, clickhouse.CodeCannotWrite: true, clickhouse.CodeCannotOpen: true, clickhouse.CodeNoSpace: true,
	clickhouse.CodeSocketTimeout: true, clickhouse.CodeNetwork: true,
}

// ofTheMachine are signs of an error of C++'s libraries that is about files, memory or a connection
// of the engine's own.
var ofTheMachine = regexp.MustCompile(`(?i)filesystem|no such file|permission denied|no space|input/output|bad_alloc|Poco::(?:File|IO|Net::(?:Connection|NoMessage|Socket|DNS|Host)|Timeout)|system_error|too many open files`)

// refused reports whether an error of a library behind ClickHouse is about what the query asked of
// it: a model, a dictionary, a certificate or a program that there is not here, or an argument that
// makes no sense to it.
func refused(e *clickhouse.Error) bool {
	return e.Code == clickhouse.CodeStd && !ofTheMachine.MatchString(e.Message)
}

// inFile is what the engine says of the file that it was reading, and how. Conditions of a query
// are looked at while a file is read, too: then the error names the function.
var inFile = regexp.MustCompile(`(?s)(?:: read stage: [^:]*(?:: column: [^:]*)?)?: \(in file/uri ([^)]*)\).*`)

// limits are the codes by which a query ends that takes too much.
var limits = map[int]bool{
	clickhouse.CodeMemoryLimit: true, clickhouse.CodeTimeout: true, clickhouse.CodeTooSlow: true, clickhouse.CodeTooManyRows: true,
	clickhouse.CodeTooManyBytes: true, clickhouse.CodeTooManyResults: true,
}

// damagedFile returns the file of a table whose content the engine cannot read; empty if an error
// is not about that.
func damagedFile(e *clickhouse.Error) string {
	m := inFile.FindStringSubmatch(e.Message)
	if m == nil || limits[e.Code] || badDate.MatchString(e.Message) || ofTheMachine.MatchString(e.Message) ||
		strings.Contains(e.Message, "while executing 'FUNCTION") {
		return ""
	}
	return m[1]
}
