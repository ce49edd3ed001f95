package server

import (
	"bytes"
	"io"
	"net/http"
	"slices"
)

// maxHeld is how many bytes of a body are read before the request is admitted. The rest of a larger
// body is read afterwards.
const maxHeld = 4<<20 + 1<<10

// Admit passes requests through the limiter. A request that would wait too long is refused before
// its body is read. An admitted request has sent its body, so slow clients do not occupy places.
// refuse responds with ErrOverloaded, or with the error of a request's context that ended while it
// waited.
func (g *Limiter) Admit(
	class func(*http.Request) Class, refuse func(http.ResponseWriter, *http.Request, error),
	next http.Handler,
) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := class(r)
		// Refuse before reading the body.
		if !g.Admits(c) {
			refuse(w, r, ErrOverloaded)
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = readAhead(r.Body, r.ContentLength)
		}
		// The body has arrived, so the place is held for the work only.
		release, err := g.Acquire(r.Context(), c)
		if err != nil {
			refuse(w, r, err)
			return
		}
		defer release()
		next.ServeHTTP(w, r)
	})
}

// As returns a function that assigns one class to all requests.
func As(c Class) func(*http.Request) Class { return func(*http.Request) Class { return c } }

// trusted is the most memory that is reserved for a body because its client says that it is so long.
const trusted = 64 << 10

// readAhead reads the start of a body. It returns a body with the same content and the same error.
// length is what the client says its length is, or -1.
func readAhead(body io.ReadCloser, length int64) io.ReadCloser {
	a := &ahead{rest: body}
	if length > 0 {
		a.held = make([]byte, 0, min(length, trusted))
	}
	for a.err == nil && len(a.held) < maxHeld {
		if len(a.held) == cap(a.held) {
			a.held = slices.Grow(a.held, bytes.MinRead)
		}
		var n int
		n, a.err = body.Read(a.held[len(a.held):min(cap(a.held), maxHeld)])
		a.held = a.held[:len(a.held)+n]
	}
	return a
}

// ahead is a body whose start was read ahead.
type ahead struct {
	held []byte // what of the start is still to be read
	err  error  // after held; nil if rest follows
	rest io.ReadCloser
}

func (a *ahead) Read(p []byte) (n int, err error) {
	switch {
	case len(a.held) > 0:
		n = copy(p, a.held)
		a.held = a.held[n:]
		return n, nil
	case a.err != nil:
		return 0, a.err
	}
	return a.rest.Read(p)
}

func (a *ahead) Close() error { return a.rest.Close() }
