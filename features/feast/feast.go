// Package feast serves what an unmodified Feast client needs to build training sets: Feast's remote
// offline store, over Arrow Flight, and a generated registry, so that a repository defines no views.
// The online store is in features/serving.
//
// Handler returns the offline store. A client sends a table of entities and a command in one stream
// (DoExchange) and gets the table back, with a column for each feature: entities.go reads the table,
// command.go the command, and answer.go joins them with features/training. Registry returns the
// registry.
//
// Invariants:
//
//   - Values are those of features/training: at the row's event time, as known at the row's time
//     as_known_at, or at the event time if the table has no such column.
//   - Rows keep their order, and columns their values.
//   - An error has the form in which Feast's server sends its own, so that the client raises the class
//     of feast.errors with the message.
//   - Whatever a client sends is bounded: rows, columns, bytes, values, time.
package feast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/apache/arrow-go/v18/arrow/flight"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/server"
)

// Config configures the offline store. All fields are required.
type Config struct {
	Groups []*features.Group
	// Facts opens the facts of sources for one request, up to positions that contain what was on the log
	// when it was called. It returns ErrBehind if they do not.
	Facts func(context.Context, []*features.Source) (training.Facts, training.Positions, error)
	// Refuses reports whether entities that are one person refuse that their facts are used; see
	// training.Config. It is called after Facts.
	Refuses func(entity string, ids ...string) bool
	// Admit blocks until a request that has arrived may be worked on, and returns server.ErrOverloaded
	// if that would take too long. peer is the client's address.
	Admit   func(ctx context.Context, peer string) (release func(), err error)
	Logger  *slog.Logger
	TempDir string // for tables in progress; it exists
}

// ErrBehind means that the facts lack some that are on the log.
var ErrBehind = errors.New("the facts have not caught up with the log")

// flightPath is the prefix of Arrow Flight's methods.
const flightPath = "/arrow.flight.protocol.FlightService/"

const (
	maxMessage = 256 << 20 // bytes of one record batch of a client
	maxTime    = time.Hour // of one request
)

// Handler returns the path and the handler of Arrow Flight's service.
func Handler(c Config) (string, http.Handler) {
	s := &store{c}
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompression("gzip", nil, nil), // costs more than loopback and data centres save
		connect.WithRecover(func(ctx context.Context, _ connect.Spec, _ http.Header, p any) error {
			return s.publicError(ctx, fmt.Errorf("panic: %v", p))
		}),
	}
	mux := http.NewServeMux()
	mux.Handle(flightPath+"DoExchange", connect.NewBidiStreamHandler(flightPath+"DoExchange", s.exchange, options...))
	mux.Handle(flightPath+"DoPut", connect.NewBidiStreamHandler(flightPath+"DoPut", s.put, options...))
	errs := connect.NewErrorWriter()
	mux.HandleFunc(flightPath, func(w http.ResponseWriter, r *http.Request) {
		unserved := &fault{connect.CodeUnimplemented, classAny, strings.TrimPrefix(r.URL.Path, flightPath) +
			" is not served: DoExchange is"}
		_ = errs.Write(w, r, unserved.public()) // a client that is gone needs no answer
	})
	return flightPath, mux
}

// store is the offline store.
type store struct{ Config }

// stream is a stream of Arrow Flight.
type stream = connect.BidiStream[flight.FlightData, flight.FlightData]

// transport is an error of a stream itself, and not of what was sent.
type transport struct{ error }

// Unwrap returns the error.
func (t *transport) Unwrap() error { return t.error }

// messages reads the messages of a stream.
type messages struct{ *stream }

// Recv implements flight.DataStreamReader.
func (m messages) Recv() (*flight.FlightData, error) {
	d, err := m.Receive()
	switch {
	case err == nil:
		return d, nil
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	}
	return nil, &transport{err}
}

// drain reads to the end. The listener bounds how much that is.
func (m messages) drain() {
	for {
		if _, err := m.Recv(); err != nil {
			return
		}
	}
}

// exchange implements DoExchange.
func (s *store) exchange(ctx context.Context, both *stream) error {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	if err := s.historical(ctx, both); err != nil {
		return s.publicError(ctx, err)
	}
	return nil
}

// historical answers get_historical_features. It reads all that the client sends before it returns an
// error, because the client does not read while it writes.
func (s *store) historical(ctx context.Context, both *stream) error {
	from := messages{both}
	e, err := receive(from)
	if err != nil {
		from.drain()
		return err
	}
	c, err := parseCommand(e.command)
	if err != nil {
		return err
	}
	p, err := c.resolve(s.Groups)
	if err != nil {
		return err
	}
	if e.mock() {
		return bad("entity_df is missing: pass a DataFrame of the entities and times; a range of dates is not enough")
	}
	release, err := s.Admit(ctx, both.Peer().Addr)
	if err != nil {
		return err
	}
	defer release()
	return s.answer(ctx, e, p, both)
}

// put answers DoPut, by which clients write.
func (s *store) put(_ context.Context, both *stream) error {
	messages{both}.drain()
	unserved := &fault{connect.CodeUnimplemented, classAny,
		"writing is not served: features are computed from the log"}
	return unserved.public()
}

// The classes of Feast's errors that are answered.
const (
	classAny       = "FeastError"
	classView      = "FeatureViewNotFoundException"
	classNotFound  = "FeastObjectNotFoundException"
	classCollision = "FeatureNameCollisionError"
)

// fault is an error that a client is told.
type fault struct {
	code           connect.Code
	class, message string
}

func (f *fault) Error() string { return f.message }

// bad returns the error about a mistake of the client.
func bad(format string, a ...any) error {
	return &fault{connect.CodeInvalidArgument, classAny, fmt.Sprintf(format, a...)}
}

// public returns the error in the form of Feast's server. Its client looks for these words.
func (f *fault) public() error {
	detail, _ := json.Marshal(map[string]string{"module": "feast.errors", "class": f.class, "message": f.message})
	return connect.NewError(f.code, errors.New("Flight error: "+string(detail))) // texts can always be marshalled
}

// publicError returns what a client is told of an error. Internal errors are logged instead.
func (s *store) publicError(ctx context.Context, err error) error {
	var f *fault
	var refused *connect.Error
	switch {
	case errors.As(err, &f):
	case errors.Is(err, training.ErrConfig), errors.Is(err, training.ErrSpine):
		message := strings.TrimPrefix(err.Error(), training.ErrSpine.Error()+": ")
		f = &fault{connect.CodeInvalidArgument, classAny, "entity_df: " + message}
	case errors.Is(err, server.ErrOverloaded):
		f = &fault{connect.CodeResourceExhausted, classAny, err.Error()}
	case errors.Is(err, ErrBehind):
		s.Logger.WarnContext(ctx, "feast: the features could not be computed", "error", err)
		f = &fault{connect.CodeUnavailable, classAny, ErrBehind.Error() + "; try again later"}
	case errors.Is(err, context.DeadlineExceeded):
		f = &fault{connect.CodeDeadlineExceeded, classAny, "the features were not computed in time: split entity_df"}
	case ctx.Err() != nil:
		f = &fault{connect.CodeCanceled, classAny, "the call was cancelled"}
	case clickhouse.Retryable(err):
		s.Logger.WarnContext(ctx, "feast: the features could not be computed", "error", err)
		f = &fault{connect.CodeUnavailable, classAny, "the facts cannot be read at present; try again later"}
	case errors.As(err, &refused) && refused.Code() != connect.CodeInternal && refused.Code() != connect.CodeUnknown:
		// The stream is damaged, late or too large.
		f = &fault{refused.Code(), classAny, refused.Message()}
	default:
		s.Logger.ErrorContext(ctx, "feast: the features could not be computed", "error", err)
		f = &fault{connect.CodeInternal, classAny, "internal error; the server's log has the reason"}
	}
	return f.public()
}
