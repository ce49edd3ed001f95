package server_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/internal/server"
)

// deadlines is a response that records how long its client has for each piece; 0: the deadline was removed.
type deadlines struct {
	http.ResponseWriter
	left []time.Duration
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	left := time.Duration(0)
	if !t.IsZero() {
		left = time.Until(t)
	}
	d.left = append(d.left, left)
	return nil
}

func (d *deadlines) SetReadDeadline(time.Time) error { return nil }

// TestWriteDeadlines checks that every piece of a response has a deadline, and that a pause between two pieces
// has none where it would end the response: a stream of HTTP/2 is reset when it passes.
func TestWriteDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bodies := &server.Bodies{Timeout: time.Minute, MaxBytes: 10}
		h := bodies.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("a"))
			_, _ = w.Write([]byte("b"))
			time.Sleep(time.Hour) // a pause
			_, _ = w.Write([]byte("c"))
		}))
		for major, want := range map[int][]time.Duration{
			1: {time.Minute, time.Minute},                                    // of a and b, and of c and the rest
			2: {time.Minute, 0, time.Minute, 0, time.Minute, 0, time.Minute}, // of a, b, c, and the rest
		} {
			d := &deadlines{ResponseWriter: httptest.NewRecorder()}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
			r.ProtoMajor = major
			if h.ServeHTTP(d, r); !slices.Equal(d.left, want) {
				t.Errorf("HTTP/%d: deadlines %v, want %v", major, d.left, want)
			}
		}
	})
}
