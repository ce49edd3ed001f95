package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
)

// maxHeld is how much of a body is read before the request's turn. What is larger is read during
// it.
const maxHeld = 4<<20 + 1<<10

// Admit lets requests through the gate. Whose turn would come too late is turned away before its
// body is read; who is let in has sent its body, so that slow clients hold no place in the gate.
// refuse answers with ErrOverloaded, or with the error of a request's context that ended while it
// waited.
func (g *Gate) Admit(class func(*http.Request) Class, refuse func(http.ResponseWriter, *http.Request, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := class(r)
		if !g.Admits(c) {
			refuse(w, r, ErrOverloaded)
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = readAhead(r.Body)
		}
		leave, err := g.Enter(r.Context(), c)
		if err != nil {
			refuse(w, r, err)
			return
		}
		defer leave()
		next.ServeHTTP(w, r)
	})
}

// As returns a class for all requests.
func As(c Class) func(*http.Request) Class { return func(*http.Request) Class { return c } }

// readAhead reads a body, and gives one that tells the same, its error included.
func readAhead(body io.ReadCloser) io.ReadCloser {
	var held bytes.Buffer
	_, err := io.CopyN(&held, body, maxHeld)
	switch {
	case err == nil:
		return &ahead{io.MultiReader(&held, body), body}
	case errors.Is(err, io.EOF) && held.Len() == 0:
		return &ahead{failing{err}, body}
	}
	return &ahead{io.MultiReader(&held, failing{err}), body}
}

type ahead struct {
	io.Reader
	io.Closer
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
