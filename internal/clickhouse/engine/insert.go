package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"time"
	"unsafe"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"github.com/millrace/millrace/internal/clickhouse"
)

// An insert is a statement in the URL that ends with its format, and a body with the rows in that
// format, as drivers send it. The body is passed on in pieces and is never part of the statement:
// rows may contain any byte, and may be larger than the longest statement.

// Limits of an insert.
const (
	maxInsert   = 512 << 20        // size of the rows, in bytes, after decompression
	insertPiece = 1 << 20          // bytes that are read and passed on at once
	readLimit   = 30 * time.Second // time in which a client must send one piece
)

// insertStatement matches the statement of an insert, and its format.
var insertStatement = regexp.MustCompile(`(?is)^(\s*INSERT\s+INTO\s.*)\sFORMAT\s+(\w+)[\s;]*$`)

// insertInto appends rows to a table.
type insertInto struct {
	conn *connection
	ptr  unsafe.Pointer
}

// insertInto starts an insert. The statement has no format and no rows.
func (c *connection) insertInto(sql, format string) (*insertInto, error) {
	p := c.lib.insert(*c.ptr, bytesOf(sql), uintptr(len(sql)), bytesOf(format), uintptr(len(format)))
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	if p == nil {
		return nil, errors.New("chdb returned no answer")
	}
	i := &insertInto{conn: c, ptr: p}
	if err := i.err(); err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

// err returns the error of the insert, or nil.
func (i *insertInto) err() error {
	if text := i.conn.lib.insertError(i.ptr); text != "" {
		return clickhouse.ParseError(text)
	}
	return nil
}

// append passes a piece of the rows on. It blocks while the engine is behind.
func (i *insertInto) append(piece []byte) error {
	if len(piece) == 0 {
		return nil
	}
	rc := i.conn.lib.insertAppend(i.ptr, unsafe.Pointer(&piece[0]), uintptr(len(piece))) //nolint:gosec // kept alive
	runtime.KeepAlive(piece)
	if rc == 0 {
		return nil
	}
	if err := i.err(); err != nil {
		return err
	}
	return errors.New("chdb refused a part of the rows without a reason")
}

// done ends the rows and returns when they are in the table.
func (i *insertInto) done() error {
	r := i.conn.lib.insertDone(i.ptr)
	if r == nil {
		return errors.New("chdb returned no answer")
	}
	defer i.conn.lib.destroyResult(r)
	if text := i.conn.lib.resultError(r); text != "" {
		return clickhouse.ParseError(text)
	}
	return nil
}

// close frees the insert. Without a call of done, the rows are discarded.
func (i *insertInto) close() {
	i.conn.lib.destroyInsert(i.ptr)
}

// runInsert inserts the rows of a request. If the body ends early, nothing is inserted.
func runInsert(ctx context.Context, c *connection, r request) error {
	// The parser accepts the statement only with its format, and chdb only without.
	statement := insertStatement.FindStringSubmatch(r.query)
	into, err := c.insertInto(statement[1], statement[2])
	if err != nil {
		return err
	}
	defer into.close()
	piece := make([]byte, insertPiece)
	for ended := false; !ended; {
		n, err := fill(r.rows, piece)
		if ended = errors.Is(err, io.EOF); err != nil && !ended {
			return err
		}
		if err := into.append(piece[:n]); err != nil {
			return err
		}
	}
	// A body that was cut off is not an end, so ctx is the last chance to notice a lost client.
	if err := ctx.Err(); err != nil {
		return err
	}
	return into.done()
}

// tokenLocks let one insert at a time run under a token. ClickHouse accepts a duplicate as soon as
// the token is logged, which is before the rows are visible. A kill in between would lose rows that
// the duplicate's client believes to be in the table.
type tokenLocks struct {
	seed  maphash.Seed
	locks [64]chan struct{} // by hash of the token
}

// newTokenLocks returns locks that are free.
func newTokenLocks() *tokenLocks {
	t := &tokenLocks{seed: maphash.MakeSeed()}
	for i := range t.locks {
		t.locks[i] = make(chan struct{}, 1)
	}
	return t
}

// acquire blocks until no other insert runs under the token in the settings.
func (t *tokenLocks) acquire(ctx context.Context, settings []setting) (release func(), err error) {
	token := ""
	for _, s := range settings {
		if s.name == "insert_deduplication_token" {
			token = s.value
		}
	}
	if token == "" {
		return func() {}, nil
	}
	lock := t.locks[maphash.String(t.seed, token)%uint64(len(t.locks))]
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fill reads until piece is full. It returns io.EOF only at the end of the rows.
func fill(r io.Reader, piece []byte) (n int, err error) {
	for n < len(piece) && err == nil {
		var more int
		more, err = r.Read(piece[n:])
		n += more
	}
	return n, err
}

// limitedReader ends with an error after a number of bytes.
type limitedReader struct {
	r     io.Reader
	limit int
	read  int
}

// Read reads up to the limit.
func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.read += n; l.read > l.limit {
		return n, tooManyBytes("the rows of the insert are", l.limit)
	}
	return n, err
}

// contentOf returns the content of a request's body, as a reader that returns a *clickhouse.Error
// for a body that is not what its headers say. It ends with io.EOF only after a complete body.
func contentOf(w http.ResponseWriter, r *http.Request) (io.Reader, error) {
	rc := http.NewResponseController(w)
	var body io.Reader = &timedReader{r: r.Body, deadline: rc.SetReadDeadline}
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, cannotDecompress(err)
		}
		body = &decoded{z}
	case "deflate":
		z, err := zlib.NewReader(body)
		if err != nil {
			return nil, cannotDecompress(err)
		}
		body = &decoded{z}
	default:
		return nil, notImplemented(fmt.Sprintf("Content-Encoding %q is not supported by the embedded engine; "+
			"use gzip, deflate, or the native blocks of decompress=1", encoding))
	}
	if r.URL.Query().Get("decompress") == "1" {
		body = newFrames(body)
	}
	return body, nil
}

// timedReader bounds the time that a client may take for each read.
type timedReader struct {
	r        io.Reader
	deadline func(time.Time) error
}

// Read reads from the body.
func (t *timedReader) Read(p []byte) (int, error) {
	if err := t.deadline(time.Now().Add(readLimit)); err != nil {
		return 0, err
	}
	n, err := t.r.Read(p)
	if err != nil {
		// At the end of the body, net/http begins to wait for the client to disconnect. The deadline
		// would count as that, however long the statement runs.
		err = cmp.Or(t.deadline(time.Time{}), err)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF): // also matches errors that wrap it
		err = errCutOff
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("the client sent nothing for %v", readLimit)
	}
	return n, err
}

// errCutOff is the error of a body that ended before its announced end.
var errCutOff = errors.New("the body of the request was cut off")

// decoded gives errors of a decoder the code of ClickHouse.
type decoded struct{ r io.Reader }

// Read reads decoded bytes.
func (d *decoded) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = cannotDecompress(err)
	}
	return n, err
}

// cannotDecompress returns the error for a body that cannot be decompressed.
func cannotDecompress(err error) error {
	if errors.Is(err, errCutOff) {
		return err
	}
	return &clickhouse.Error{
		Code: clickhouse.CodeCannotDecompress, Name: "CANNOT_DECOMPRESS",
		Message: "the body of the request cannot be decompressed: " + err.Error(),
	}
}

// tooManyBytes returns the error for a body that is too large.
func tooManyBytes(what string, limit int) error {
	return &clickhouse.Error{
		Code: clickhouse.CodeTooManyBytes, Name: "TOO_MANY_BYTES",
		Message: fmt.Sprintf("%s longer than %d bytes", what, limit),
	}
}
