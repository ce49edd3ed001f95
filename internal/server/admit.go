package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
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
			r.Body = readAhead(r.Body)
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

// readAhead reads the start of a body. It returns a body with the same content and the same error.
func readAhead(body io.ReadCloser) io.ReadCloser {
	var held bytes.Buffer
	// CopyN ends with io.EOF if the body is shorter than maxHeld.
	_, err := io.CopyN(&held, body, maxHeld)
	switch {
	case err == nil:
		return &ahead{io.MultiReader(&held, body), body} // the rest is read by the handler
	case errors.Is(err, io.EOF) && held.Len() == 0:
		return &ahead{failing{err}, body}
	}
	return &ahead{io.MultiReader(&held, failing{err}), body}
}

// ahead is a body whose start was read ahead.
type ahead struct {
	io.Reader
	io.Closer
}

// failing returns an error for each read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
