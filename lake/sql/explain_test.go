package sql

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
)

// An error without a code of its own is the query's fault if a library behind a function refuses
// its arguments, and ours if the machine fails.
func TestExplain(t *testing.T) {
	t.Parallel()
	s := &SQL{reader: clickhouse.NewClient("127.0.0.1:1", clickhouse.Reader, "")}
	snap := &snapshot{database: "lake_x"}
	for _, c := range []struct {
		code    int
		message string
		query   bool
	}{
		{1001, "Poco::NotFoundException: Not found", true},
		{1001, "Poco::Net::SSLException: SSL Exception", true},
		{1001, "mongocxx::v_noabi::logic_error: Invalid URI", true},
		{1001, "std::out_of_range: basic_string", true},
		{1001, "std::__1::regex_error: The expression contained an invalid escaped character", true},
		{1001, "std::__1::__fs::filesystem::filesystem_error: filesystem error: in file_size: No such file or directory", false},
		{1001, "std::bad_alloc: std::bad_alloc", false},
		{1001, "Poco::FileAccessDeniedException: Access to file denied", false},
		{1001, "Poco::Net::ConnectionRefusedException: Connection refused", false},
		{1001, "std::__1::system_error: No space left on device", false},
		{1002, "Unknown exception", false},
		{74, "Cannot read from file", false},
		{210, "Connection reset by peer", false},
		{243, "Not enough space", false},
		{62, "Syntax error: failed at position 8", true},
		{6, "Cannot parse string 'x' as Int32", true},
		{395, "Value passed to 'throwIf' function is non-zero", true},
		{241, "Query memory limit exceeded", true},
		{159, "Timeout exceeded", true},
		{160, "Estimated query execution time is too long", true},
		{241, "Query memory limit exceeded: (in file/uri /data/a.parquet): While executing ReadFromObjectStorage", true},
		{241, "(total) memory limit exceeded: would use 7.1 GiB", false},
		{745, "CPU is overloaded", false},
		{439, "Cannot schedule a task", false},
		{173, "Cannot allocate memory", false},
		{236, "Server is shutting down", false},
		{117, "Not a Parquet file: (in file/uri /data/a.parquet): While executing ReadFromObjectStorage", false},
		{1001, "apache::thrift::TException: no more data: (in file/uri bucket/a.parquet): While executing ReadFromObjectStorage", false},
		{117, "Cannot parse JSON: while executing 'FUNCTION CAST(a)': (in file/uri /data/a.parquet): While executing ReadFromObjectStorage", true},
	} {
		var fault *QueryError
		err := s.explain(&clickhouse.Error{Code: c.code, Message: c.message}, snap)
		if is := errors.As(err, &fault); is != c.query {
			t.Errorf("%d %s: the query's fault: %t, want %t", c.code, c.message, is, c.query)
		}
	}
}

// An engine that lacks capacity of any kind for a query reports that it may be retried.
func TestBusyEngine(t *testing.T) {
	t.Parallel()
	s := &SQL{reader: clickhouse.NewClient("127.0.0.1:1", clickhouse.Reader, "")}
	for code, message := range map[int]string{202: "Too many simultaneous queries", 745: "CPU is overloaded", 439: "no thread", 241: "(total) memory limit exceeded"} {
		if err := s.explain(&clickhouse.Error{Code: code, Message: message}, &snapshot{database: "lake_x"}); !errors.Is(err, ErrBusy) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

// Operators of their own server are told how to create the missing user, with only its rights.
func TestMissingReader(t *testing.T) {
	t.Parallel()
	client, err := clickhouse.NewServerClient(clickhouse.Server{URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &SQL{reader: client}
	for user, grant := range map[string]string{clickhouse.Reader: "ON lake_*.* TO reader; GRANT SHOW, SELECT ON features.* TO reader", clickhouse.ScopedReader(7): "ON lake_s07_*.* TO reader_07"} {
		err := s.explain(&clickhouse.Error{Code: clickhouse.CodeAuthentication, Message: "no such user"}, &snapshot{database: "lake_x", reader: user})
		if !strings.Contains(err.Error(), "CREATE USER "+user+" ") || !strings.HasSuffix(err.Error(), grant) {
			t.Errorf("%s: %v", user, err)
		}
	}
}
