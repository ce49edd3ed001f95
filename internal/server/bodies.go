package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Errors of reading a request's body.
var (
	ErrBodyLate = errors.New("the request body did not arrive in time")
	ErrBusy     = errors.New("too many large requests in progress; try again later")
	ErrBody     = errors.New("cannot read the request body")
)

const writeTimeout = time.Minute // in which a client must take one piece of a response

// Bodies bounds the bodies of requests: the time in which one must arrive, and the bytes of all in
// progress.
type Bodies struct {
	Timeout  time.Duration // for a whole body
	MaxBytes int64         // of the bodies of all requests in progress
	// Stream reports whether a request's body is a stream of messages, which lasts as long as the
	// client continues. For a stream, the silence between two messages is bounded, and its handler
	// bounds the messages. Nil means that there are no streams.
	Stream  func(*http.Request) bool
	Silence time.Duration

	// held is the number of bytes in progress.
	held atomic.Int64
}

// Guard reads bodies within the bounds, and disconnects clients that do not read their response.
func (b *Bodies) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &writer{ResponseWriter: w, control: http.NewResponseController(w), stream: r.ProtoMajor > 1}
		if r.Body != nil && r.Body != http.NoBody {
			in := &body{ReadCloser: r.Body, all: b, control: out.control, stream: b.Stream != nil && b.Stream(r)}
			// The bytes count until the handler has returned.
			defer func() { b.held.Add(-in.read.Load()) }()
			in.bound()
			r.Body = in
		}
		next.ServeHTTP(out, r)
		out.bound() // the rest of the response is sent after the handler
	})
}

// body is a request's body within the bounds.
type body struct {
	io.ReadCloser
	all     *Bodies
	control *http.ResponseController
	stream  bool
	bounded bool // a read deadline is set
	read    atomic.Int64
}

// bound sets the read deadline.
func (b *body) bound() {
	within := b.all.Timeout
	if b.stream {
		within = b.all.Silence
	}
	b.bounded = b.control.SetReadDeadline(time.Now().Add(within)) == nil
}

// Read returns ErrBusy if all bodies together exceed the limit, ErrBodyLate after the deadline, and
// wraps other errors in ErrBody.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	// Streams are bounded per message by their handlers, not in total.
	if !b.stream {
		b.read.Add(int64(n))
		if b.all.held.Add(int64(n)) > b.all.MaxBytes {
			return n, ErrBusy
		}
	}
	if err == nil {
		if b.stream {
			b.bound() // the deadline is for each message of a stream
		}
		return n, nil
	}
	if b.bounded {
		b.bounded = false
		// Otherwise the request would end while its handler works.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, io.EOF) { // the frequent case, without what errors.As costs
		return n, err
	}
	var timeout net.Error
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case errors.As(err, &tooLarge):
		return n, err // the limit of a handler is not a fault of the connection
	case errors.As(err, &timeout) && timeout.Timeout():
		return n, ErrBodyLate
	}
	return n, errors.Join(ErrBody, err)
}

// writer sets a deadline for each piece of a response, so that long responses may take long, with
// pauses between pieces.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	stream  bool      // of HTTP/2
	set     time.Time // when the deadline was set; zero if it was removed
}

// recent is how old a deadline may be that is used for the next piece, too. To set one costs more than
// to read the clock, and most responses are complete within a moment.
const recent = time.Second

// bound sets the deadline. Errors are ignored: without support for deadlines, the response is sent all
// the same.
func (w *writer) bound() {
	if now := time.Now(); now.Sub(w.set) > recent {
		w.set = now
		_ = w.control.SetWriteDeadline(now.Add(writeTimeout))
	}
}

// release removes the deadline where it would end a pause: a stream of HTTP/2 is reset when it passes. On a
// connection of HTTP/1, it matters only to a write, and the next one sets another.
func (w *writer) release() {
	if w.stream {
		w.set = time.Time{}
		_ = w.control.SetWriteDeadline(time.Time{})
	}
}

// Write writes one piece within the deadline.
func (w *writer) Write(p []byte) (int, error) {
	w.bound()
	defer w.release()
	return w.ResponseWriter.Write(p)
}

// Flush is used by connect's streams.
func (w *writer) Flush() {
	w.bound()
	defer w.release()
	_ = w.control.Flush() // http.Flusher returns no error
}

// Unwrap is used by http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
