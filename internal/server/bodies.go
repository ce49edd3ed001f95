package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// What reading a request's body gives where it does not come as it must.
var (
	ErrBodyLate = errors.New("the request's body did not come in time")
	ErrBusy     = errors.New("too many large requests at a time; try again later")
	ErrBody     = errors.New("the request's body cannot be read")
)

const writeTimeout = time.Minute // in which a client must take one piece of an answer

// Bodies bounds what requests bring: the time that a body takes, and the bytes of all bodies
// together.
type Bodies struct {
	Timeout  time.Duration
	MaxBytes int64 // of the bodies of all requests under way
	// Stream reports whether a request's body is a stream of messages, which lasts as long as the
	// client continues: then it is the silence between two of them that is bounded. Its handler
	// bounds the messages. Nil: none is.
	Stream  func(*http.Request) bool
	Silence time.Duration

	held atomic.Int64
}

// Guard reads bodies within the bounds. A client that does not take its answer is cut off.
func (b *Bodies) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &writer{ResponseWriter: w, control: http.NewResponseController(w)}
		if r.Body != nil && r.Body != http.NoBody {
			in := &body{ReadCloser: r.Body, all: b, control: out.control, stream: b.Stream != nil && b.Stream(r)}
			defer func() { b.held.Add(-in.read.Load()) }()
			in.bound()
			r.Body = in
		}
		next.ServeHTTP(out, r)
		out.bound() // what is left of the answer is sent behind the handler
	})
}

type body struct {
	io.ReadCloser
	all     *Bodies
	control *http.ResponseController
	stream  bool
	bounded bool // by a deadline that is still set
	read    atomic.Int64
}

func (b *body) bound() {
	within := b.all.Timeout
	if b.stream {
		within = b.all.Silence
	}
	b.bounded = b.control.SetReadDeadline(time.Now().Add(within)) == nil
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if !b.stream {
		b.read.Add(int64(n))
		if b.all.held.Add(int64(n)) > b.all.MaxBytes {
			return n, ErrBusy
		}
	}
	if err == nil {
		if b.stream {
			b.bound()
		}
		return n, nil
	}
	if b.bounded {
		b.bounded = false
		_ = b.control.SetReadDeadline(time.Time{}) // or the request would end while it is worked on
	}
	var timeout net.Error
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case errors.Is(err, io.EOF), errors.As(err, &tooLarge):
		return n, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return n, ErrBodyLate
	}
	return n, errors.Join(ErrBody, err)
}

// writer gives each piece of an answer a deadline of its own, so that long answers may take long,
// and be silent in between.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Without deadlines, which a writer may not know, an answer is sent all the same.
func (w *writer) bound()   { _ = w.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }
func (w *writer) release() { _ = w.control.SetWriteDeadline(time.Time{}) }

func (w *writer) Write(p []byte) (int, error) {
	w.bound()
	defer w.release()
	return w.ResponseWriter.Write(p)
}

// Flush is asked for by connect's streams.
func (w *writer) Flush() {
	w.bound()
	defer w.release()
	_ = w.control.Flush() // as http.Flusher, which tells no error
}

// Unwrap is asked for by http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
