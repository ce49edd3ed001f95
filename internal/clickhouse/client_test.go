package clickhouse_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/millrace/millrace/internal/clickhouse"
)

const tag = "abcdefghijklmnop"

// server answers every query with parts, and breaks the connection after them if broken.
func server(t *testing.T, parts []string, broken bool) *clickhouse.Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-ClickHouse-Exception-Tag", tag)
		for _, p := range parts {
			_, _ = io.WriteString(w, p)
			_ = http.NewResponseController(w).Flush()
		}
		if broken {
			panic(http.ErrAbortHandler)
		}
	}))
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	return clickhouse.NewClient(strings.TrimPrefix(s.URL, "http://"), clickhouse.Admin, "")
}

func exceptionBlock(tag, message string) string {
	return fmt.Sprintf("\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n", tag, message, len(message)+1, tag)
}

// An answer ends with all of its rows, and with the error if the query failed.
func TestAnswerEnds(t *testing.T) {
	t.Parallel()
	rows := strings.Repeat("0123456789\n", 20_000)
	boom := "Code: 395. DB::Exception: boom (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)"
	long := "Code: 395. DB::Exception: " + strings.Repeat("b", 14<<10)
	split := exceptionBlock(tag, boom)
	for name, c := range map[string]struct {
		parts    []string
		broken   bool
		want     string
		wantCode int // 0 if it ends well; -1 if it breaks off without an error
	}{
		"well":                       {parts: []string{rows, "x"}, want: rows + "x"},
		"empty":                      {want: ""},
		"with an error":              {parts: []string{rows, exceptionBlock(tag, boom)}, broken: true, want: rows, wantCode: 395},
		"with an error at once":      {parts: []string{exceptionBlock(tag, boom)}, broken: true, wantCode: 395},
		"with a long error":          {parts: []string{rows, exceptionBlock(tag, long)}, broken: true, want: rows, wantCode: 395},
		"with an error in pieces":    {parts: []string{rows + split[:7], split[7:30], split[30:]}, broken: true, want: rows, wantCode: 395},
		"with an error, closed well": {parts: []string{rows, exceptionBlock(tag, boom)}, want: rows, wantCode: 395},
		"broken":                     {parts: []string{rows}, broken: true, want: rows, wantCode: -1},
		"with rows that look so":     {parts: []string{rows, exceptionBlock("ponmlkjihgfedcba", boom)}, want: rows + exceptionBlock("ponmlkjihgfedcba", boom)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body, err := server(t, c.parts, c.broken).Query(t.Context(), "SELECT 1", "TSV", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close() //nolint:errcheck // read to its end
			got, err := io.ReadAll(iotest.OneByteReader(body))
			if string(got) != c.want {
				t.Errorf("got %d bytes %.80q…, want %d", len(got), got, len(c.want))
			}
			e := new(clickhouse.Error)
			switch {
			case c.wantCode == 0 && err != nil:
				t.Errorf("error %v", err)
			case c.wantCode > 0 && (!errors.As(err, &e) || e.Code != c.wantCode):
				t.Errorf("error %v, want code %d", err, c.wantCode)
			case c.wantCode < 0 && (errors.As(err, &e) || !errors.Is(err, io.ErrUnexpectedEOF)):
				t.Errorf("error %v, want a broken answer", err)
			}
		})
	}
}

// A server that is not ClickHouse is reported as such.
func TestNotClickHouse(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	c := clickhouse.NewClient(strings.TrimPrefix(s.URL, "http://"), clickhouse.Admin, "")
	_, err := c.Query(t.Context(), "SELECT 1", "TSV", nil)
	if e := (*clickhouse.Error)(nil); err == nil || errors.As(err, &e) || !strings.Contains(err.Error(), "404") {
		t.Errorf("Query: %v", err)
	}
	if err := c.Ping(t.Context()); err == nil {
		t.Error("Ping takes a 404 for an answer")
	}
}

// Codes, names and messages are separated, whatever is around them.
func TestParseError(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]clickhouse.Error{
		"Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE) (version 26.7.2.1 (official build))\n": {Code: 60, Name: "UNKNOWN_TABLE", Message: "Table x does not exist."},
		"Code: 62. DB::Exception: Syntax error (at (position) 3). (SYNTAX_ERROR)":                                {Code: 62, Name: "SYNTAX_ERROR", Message: "Syntax error (at (position) 3)."},
		"Code: 164. DB::Exception: Code: 164. DB::Exception: No. (READONLY) (version 26.7.2.1). (READONLY)":      {Code: 164, Name: "READONLY", Message: "No."},
		"Code: 1. DB::Exception: no name":  {Code: 1, Message: "no name"},
		"Invalid or closed connection":     {Code: 1002, Message: "Invalid or closed connection"},
		"Code: 99999999999999999999. DB::": {Code: 1002, Message: "Code: 99999999999999999999. DB::"},
		"":                                 {Code: 1002},
	} {
		if got := *clickhouse.ParseError(text); got != want {
			t.Errorf("%q: %#v, want %#v", text, got, want)
		}
	}
}

// Any text results in an error that is no longer than the text.
func FuzzParseError(f *testing.F) {
	f.Add("Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE) (version 26.7.2.1)")
	f.Fuzz(func(t *testing.T, text string) {
		e := clickhouse.ParseError(text)
		if len(e.Message) > len(text) || !strings.Contains(text, e.Message) {
			t.Errorf("message %q does not stand in %q", e.Message, text)
		}
		again := clickhouse.ParseError(fmt.Sprintf("Code: %d. DB::Exception: plain (NAME_OF_IT)", e.Code))
		if again.Code != e.Code || again.Name != "NAME_OF_IT" || again.Message != "plain" {
			t.Errorf("%#v", again)
		}
	})
}

// An answer comes out unchanged, whatever its bytes and however it is cut into reads.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("a\r\n__exception__\r\nabc"), false)
	f.Fuzz(func(t *testing.T, rows []byte, fail bool) {
		if bytes.Contains(rows, []byte(tag)) {
			return
		}
		parts := []string{string(rows)}
		if fail {
			parts = append(parts, exceptionBlock(tag, "Code: 395. DB::Exception: boom"))
		}
		body, err := server(t, parts, fail).Query(t.Context(), "SELECT 1", "TSV", nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if !bytes.Equal(got, rows) {
			t.Errorf("got %q, want %q", got, rows)
		}
		if e := (*clickhouse.Error)(nil); errors.As(err, &e) != fail {
			t.Errorf("error %v", err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The configuration comes first, then the environment, then the usual places.
func TestFindLibrary(t *testing.T) {
	there := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(clickhouse.EnvLibraryPath, there)
	if got, err := clickhouse.FindLibrary(""); got != there || err != nil {
		t.Errorf("from the environment: %q, %v", got, err)
	}
	if _, err := clickhouse.FindLibrary("/nowhere/libchdb.so"); !errors.Is(err, clickhouse.ErrNoLibrary) || !strings.Contains(err.Error(), "clickhouse.library is /nowhere/libchdb.so") {
		t.Errorf("configured, but absent: %v", err)
	}
	t.Setenv(clickhouse.EnvLibraryPath, "")
	dir := t.TempDir()
	t.Chdir(dir)
	if _, err := clickhouse.FindLibrary(""); !errors.Is(err, clickhouse.ErrNoLibrary) || !strings.Contains(err.Error(), "run `make tools`") {
		t.Errorf("nowhere: %v", err)
	}
	installed := filepath.Join(dir, ".tools/npm/node_modules/@chdb/lib-linux-x64-gnu")
	if err := errors.Join(os.MkdirAll(installed, 0o700), os.WriteFile(filepath.Join(installed, "libchdb.so"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got, err := clickhouse.FindLibrary(""); got != filepath.Join(installed, "libchdb.so") || err != nil {
		t.Errorf("installed: %q, %v", got, err)
	}
}

// A server is used at its URL, over TLS, with its user. The URL must not contain a password,
// because errors would show it.
func TestServerClient(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	s := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("X-ClickHouse-User") + ":" + r.Header.Get("X-ClickHouse-Key")
	}))
	t.Cleanup(s.Close)
	authorities := x509.NewCertPool()
	authorities.AddCert(s.Certificate())
	c, err := clickhouse.NewServerClient(clickhouse.Server{URL: s.URL, User: "me", Password: "pass", TLS: &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // it never fails
	if err := c.Exec(t.Context(), "SELECT 1", nil); err != nil || <-asked != "me:pass" || !c.External() {
		t.Errorf("error %v", err)
	}
	distrustful, err := clickhouse.NewServerClient(clickhouse.Server{URL: s.URL, Password: "pass"})
	if err != nil {
		t.Fatal(err)
	}
	if err := distrustful.Exec(t.Context(), "SELECT 1", nil); err == nil || strings.Contains(err.Error(), "pass") {
		t.Errorf("error %v", err)
	}
	for _, bad := range []string{"", "localhost:8123", "tcp://localhost:9000", "http://me:hidden@localhost:8123", "http://localhost:8123/?user=me&password=hidden", "http://localhost/path", "http://me:hidden@local host"} {
		if _, err := clickhouse.NewServerClient(clickhouse.Server{URL: bad}); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}
