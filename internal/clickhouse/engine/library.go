package engine

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/millrace/millrace/internal/clickhouse"
)

// library is the C interface of libchdb.so (chdb.h). Results and streams are opaque pointers, which
// chdb owns until they are destroyed. A connection runs one statement at a time, and connections
// run concurrently.
type library struct {
	args []string // arguments of every connection

	version           func() string
	setSignalHandlers func(enabled int32)
	connect           func(argc int32, argv unsafe.Pointer) *unsafe.Pointer
	closeConnection   func(connection *unsafe.Pointer)
	classify          func(
		connection, sql unsafe.Pointer, sqlLen uintptr, db unsafe.Pointer, dbLen uintptr, out unsafe.Pointer,
	) int32
	query func(
		connection, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
	) unsafe.Pointer
	streamQuery func(
		connection, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
	) unsafe.Pointer
	streamFetch   func(connection unsafe.Pointer, stream unsafe.Pointer) unsafe.Pointer
	streamCancel  func(connection unsafe.Pointer, stream unsafe.Pointer)
	destroyResult func(result unsafe.Pointer)
	insert        func(
		connection, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
	) unsafe.Pointer
	insertAppend  func(insert unsafe.Pointer, data unsafe.Pointer, size uintptr) int32
	insertDone    func(insert unsafe.Pointer) unsafe.Pointer
	insertCancel  func(insert unsafe.Pointer)
	insertError   func(insert unsafe.Pointer) string
	destroyInsert func(insert unsafe.Pointer)
	resultBuffer  func(result unsafe.Pointer) *byte
	resultLength  func(result unsafe.Pointer) uintptr
	resultError   func(result unsafe.Pointer) string
}

// loadLibrary loads libchdb.so into the process. It cannot be unloaded.
func loadLibrary(path string) (*library, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	l := new(library)
	// Resolve all functions at once, so that an old library fails at the start.
	for _, f := range []struct {
		name string
		ptr  any
	}{
		{"chdb_version", &l.version},
		{"chdb_set_signal_handlers_enabled", &l.setSignalHandlers},
		{"chdb_connect", &l.connect},
		{"chdb_close_conn", &l.closeConnection},
		{"chdb_classify_query_n", &l.classify},
		{"chdb_query_n", &l.query},
		{"chdb_stream_query_n", &l.streamQuery},
		{"chdb_stream_fetch_result", &l.streamFetch},
		{"chdb_stream_cancel_query", &l.streamCancel},
		{"chdb_destroy_query_result", &l.destroyResult},
		{"chdb_stream_insert_n", &l.insert},
		{"chdb_stream_append", &l.insertAppend},
		{"chdb_stream_done", &l.insertDone},
		{"chdb_stream_cancel_insert", &l.insertCancel},
		{"chdb_stream_insert_error", &l.insertError},
		{"chdb_destroy_insert_stream", &l.destroyInsert},
		{"chdb_result_buffer", &l.resultBuffer},
		{"chdb_result_length", &l.resultLength},
		{"chdb_result_error", &l.resultError},
	} {
		symbol, err := purego.Dlsym(handle, f.name)
		if err != nil {
			return nil, fmt.Errorf("%s has no %s, so it is older than 26.7.3: "+
				"run `make tools` to install the version in tools/package.json", path, f.name)
		}
		purego.RegisterFunc(f.ptr, symbol)
	}
	// Go handles the signals of this process. chdb's handlers do not know goroutine stacks.
	l.setSignalHandlers(0)
	return l, nil
}

// connection is one ClickHouse session.
type connection struct {
	lib *library
	ptr *unsafe.Pointer
}

// open starts a session. The first one in a process starts the engine.
func (l *library) open() (*connection, error) {
	// C strings that end with a zero byte. Go must not move or free them during the call.
	argv := make([]*byte, 0, len(l.args)+1)
	var pin runtime.Pinner
	defer pin.Unpin()
	for _, a := range append([]string{"clickhouse"}, l.args...) {
		b := append([]byte(a), 0)
		pin.Pin(&b[0])
		argv = append(argv, &b[0])
	}
	// The arguments are pinned for the duration of the call.
	pin.Pin(&argv[0])
	p := l.connect(int32(len(argv)), unsafe.Pointer(&argv[0])) //nolint:gosec // C's argv, pinned
	if p == nil {
		return nil, errors.New("chdb refused the connection; the reason is on standard error")
	}
	return &connection{lib: l, ptr: p}, nil
}

// close ends the session. Closing the last one stops the engine.
func (c *connection) close() {
	c.lib.closeConnection(c.ptr)
}

// statementClass is the effect of a statement, in the order of chdb_query_class.
type statementClass uint32

// The classes, with the values of the C interface.
const (
	classRead statementClass = iota
	classMutate
	classMutateGlobal
	classControl // SET, USE, SYSTEM, INTO OUTFILE, …
	classUnknown
)

// analyze parses sql without running it. Text that does not parse has no statements and the class
// unknown.
func (c *connection) analyze(sql string) (statements int, class statementClass, err error) {
	// out is a chdb_query_analysis_v1.
	out := struct{ size, statements, flags, class uint32 }{size: 16}
	//nolint:gosec // out is written before the call returns
	rc := c.lib.classify(*c.ptr, bytesOf(sql), uintptr(len(sql)), nil, 0, unsafe.Pointer(&out))
	runtime.KeepAlive(sql)
	if rc != 0 {
		return 0, classUnknown, errors.New("chdb cannot analyze the statement: the connection is closed")
	}
	return int(out.statements), statementClass(out.class), nil
}

// run executes sql and returns a copy of the whole answer.
func (c *connection) run(sql, format string) ([]byte, error) {
	r := c.lib.query(*c.ptr, bytesOf(sql), uintptr(len(sql)), bytesOf(format), uintptr(len(format)))
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	if r == nil {
		return nil, errors.New("chdb returned no answer")
	}
	defer c.lib.destroyResult(r)
	if text := c.lib.resultError(r); text != "" {
		return nil, clickhouse.ParseError(text)
	}
	return append([]byte(nil), c.lib.bytes(r)...), nil
}

// stream is an answer that is read in pieces.
type stream struct {
	conn  *connection
	ptr   unsafe.Pointer // chdb's stream
	chunk unsafe.Pointer // piece that was returned last; chdb's until it is released
	ended bool
}

// stream starts sql and returns when it has been analyzed.
func (c *connection) stream(sql, format string) (*stream, error) {
	p := c.lib.streamQuery(*c.ptr, bytesOf(sql), uintptr(len(sql)), bytesOf(format), uintptr(len(format)))
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	if p == nil {
		return nil, errors.New("chdb returned no answer")
	}
	if text := c.lib.resultError(p); text != "" {
		c.lib.destroyResult(p)
		return nil, clickhouse.ParseError(text)
	}
	return &stream{conn: c, ptr: p}, nil
}

// next returns the next piece, or io.EOF. The piece is valid until the following call.
func (s *stream) next() ([]byte, error) {
	s.release()
	if s.ended {
		return nil, io.EOF
	}
	// An empty piece marks the end.
	s.chunk = s.conn.lib.streamFetch(*s.conn.ptr, s.ptr)
	if s.chunk == nil {
		s.ended = true
		return nil, errors.New("chdb returned no answer")
	}
	if text := s.conn.lib.resultError(s.chunk); text != "" {
		s.ended = true
		return nil, clickhouse.ParseError(text)
	}
	b := s.conn.lib.bytes(s.chunk)
	if len(b) == 0 {
		s.ended = true
		return nil, io.EOF
	}
	return b, nil
}

// close ends the query if it is still running.
func (s *stream) close() {
	s.release()
	if !s.ended {
		s.conn.lib.streamCancel(*s.conn.ptr, s.ptr)
	}
	s.conn.lib.destroyResult(s.ptr)
}

// release frees the last piece.
func (s *stream) release() {
	if s.chunk != nil {
		s.conn.lib.destroyResult(s.chunk)
		s.chunk = nil
	}
}

// bytes returns the memory of a result, which belongs to chdb.
func (l *library) bytes(result unsafe.Pointer) []byte {
	return unsafe.Slice(l.resultBuffer(result), l.resultLength(result)) //nolint:gosec // as long as chdb says
}

// bytesOf returns the memory of s, for C functions that take its length and do not keep it.
func bytesOf(s string) unsafe.Pointer {
	return unsafe.Pointer(unsafe.StringData(s)) //nolint:gosec // callers keep s alive
}
