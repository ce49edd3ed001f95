package engine

import (
	"context"
	"errors"
	"io"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"

	"github.com/millrace/millrace/internal/clickhouse"
)

// request is one statement with its parameters.
type request struct {
	id       string // id of the query in logs; it is used to cancel the query
	user     string
	database string // may be empty
	query    string
	format   string
	settings []setting
	revision int // of the native protocol that the client announces; 0 if it does not

	compression compress.Method // of the answer, if it is framed
	framed      bool            // the answer is a sequence of frames; see frames.go

	rows     io.Reader // of an insert; nil for other statements
	readOnly bool      // it came by GET
	buffered bool      // answer only when it is complete
}

// setting is one setting of a session.
type setting struct{ name, value string }

// killInterval is how often KILL QUERY is repeated: at the first time, the query may not have
// begun.
const killInterval = 20 * time.Millisecond

// bufferedLimits bound the size of an answer that is not streamed. chdb holds it completely,
// outside of ClickHouse's memory limits. A column with one repeated value counts as that value
// only, so for readers the time is bounded, too.
var bufferedLimits = []setting{
	{"max_result_rows", "1000000"}, {"max_result_bytes", "256000000"}, {"result_overflow_mode", "throw"},
}

// execute runs one statement in its own session and passes its answer to emit. The argument of emit
// is valid until emit returns. execute ends early when ctx ends. Errors of the statement are a
// *clickhouse.Error.
func (s *server) execute(ctx context.Context, r request, emit func([]byte) error) error {
	// ClickHouse keeps state per thread between the calls of one query.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := s.control.lib.open()
	if err != nil {
		return err
	}
	defer c.close()
	class, err := check(c, r)
	if err != nil {
		return err
	}
	if answer, is, err := handshake(c, r); is {
		if err != nil {
			return err
		}
		return emit(answer)
	}
	// Only a plain SELECT in a suitable format can be streamed.
	cut, streamed := streamable(r.format)
	streamed = streamed && class == classRead && !r.buffered && !mayNameFormat.MatchString(r.query)
	for _, sql := range prelude(r, streamed) {
		if _, err := c.run(sql, "Null"); err != nil {
			return err
		}
	}
	// From here on, the query ends when its client disconnects.
	defer s.killWhenDone(ctx, r.id)()
	if r.rows != nil {
		return runInsert(ctx, c, r)
	}
	if streamed {
		if err := runStream(c, r, cut, emit); !errors.Is(err, errNotStreamable) {
			return err
		}
	}
	var answer []byte
	run := func() (err error) { answer, err = c.run(r.query, r.format); return err }
	if r.user == clickhouse.Writer && definingStatement.MatchString(r.query) {
		err = s.tables.change(ctx, r.query, run, func(table string) error {
			_, err := c.run("DROP TABLE IF EXISTS "+quoteName(clickhouse.Features)+"."+quoteName(table)+" SYNC", "Null")
			return err
		})
	} else {
		err = run()
	}
	if err != nil {
		return err
	}
	return emit(answer)
}

// check returns the class of the statement. It returns an error if the text is not exactly one
// statement, or if the user may not run it.
func check(c *connection, r request) (statementClass, error) {
	// ClickHouse's own parser decides what a statement is.
	statements, class, err := c.analyze(r.query)
	switch {
	case err != nil:
		return classUnknown, err
	case statements > 1:
		return classUnknown, &clickhouse.Error{
			Code: clickhouse.CodeSyntax, Name: "SYNTAX_ERROR",
			Message: "several statements in one request; send one at a time",
		}
	case class == classUnknown:
		return classUnknown, explainUnparsable(c, r.query)
	case limited(r.user):
		return class, guard(c, r.user, r.query, class)
	}
	return class, nil
}

// prelude returns the statements that set a session's database, settings and, last, its rights.
// After them, a reader cannot change settings.
func prelude(r request, streamed bool) []string {
	var sql []string
	if r.database != "" {
		sql = append(sql, "USE "+quoteName(r.database))
	}
	// Later settings override earlier ones.
	var settings []setting
	if !streamed {
		settings = append(settings, bufferedLimits...)
	}
	settings = append(settings, r.settings...) // Admin may raise the limits
	// The comment identifies the query for KILL QUERY. It comes last, so that a request cannot
	// replace it.
	settings = append(settings, setting{"log_comment", r.id})
	// GET must not change anything.
	if r.readOnly {
		settings = append(settings, setting{"readonly", "2"})
	}
	sql = append(sql, set(settings))
	switch {
	case r.user == clickhouse.Writer:
		sql = append(sql, "SET ROLE "+quoteName(r.user))
	case clickhouse.IsReader(r.user):
		sql = append(sql, becomeReader(r.user, streamed)...)
	}
	return sql
}

// settingName matches the names that SET accepts without quotes.
var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// set returns a statement that applies settings.
func set(settings []setting) string {
	assignments := make([]string, len(settings))
	for i, s := range settings {
		assignments[i] = s.name + " = " + quote(s.value)
	}
	return "SET " + strings.Join(assignments, ", ")
}

// errNotStreamable means that chdb cannot stream the statement, because it is not a SELECT, and
// that nothing has run.
var errNotStreamable = errors.New("the statement cannot be streamed")

// runStream passes the pieces of an answer to emit. It removes the head from all but the first.
func runStream(c *connection, r request, cut func([]byte) []byte, emit func([]byte) error) error {
	st, err := c.stream(r.query, r.format)
	if err != nil {
		e := (*clickhouse.Error)(nil)
		if errors.As(err, &e) && strings.HasPrefix(e.Message, "Streaming query is not supported") {
			return errNotStreamable
		}
		return err
	}
	defer st.close()
	// Each piece is a complete document of the format. See formats.go.
	for first := true; ; first = false {
		piece, err := st.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !first {
			piece = cut(piece)
		}
		if err := emit(piece); err != nil {
			return err
		}
	}
}

// killWhenDone cancels the query with this id when ctx ends. chdb has no function for that, and a
// connection that runs a query accepts no other. So another connection sends KILL QUERY. It
// identifies the query by its comment, because chdb does not accept query ids.
func (s *server) killWhenDone(ctx context.Context, id string) (stop func()) {
	// ended is closed when no KILL QUERY is running any more.
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-stopped:
			return
		case <-ctx.Done():
		}
		// Repeat until the statement has ended: an early KILL may have found nothing.
		t := time.NewTicker(killInterval)
		defer t.Stop()
		for {
			s.kill(id)
			select {
			case <-stopped:
				return
			case <-t.C:
			}
		}
	}()
	return func() { close(stopped); <-ended }
}

// kill sends one KILL QUERY. It does not wait for the query to end.
func (s *server) kill(id string) {
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	statement := "KILL QUERY WHERE Settings['log_comment'] = " + quote(id) + " ASYNC"
	if _, err := s.control.run(statement, "Null"); err != nil {
		s.log.Warn("cannot cancel query", "query", id, "error", err)
	}
}
