package server_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/millrace/millrace/internal/server"
)

// A wrong parameter is a client error and starts no profile.
func TestProfileParameters(t *testing.T) {
	t.Parallel()
	h := server.Profiles()
	for query, want := range map[string]int{
		"profile?seconds=abc": 400, "profile?seconds=-1": 400, "profile?seconds=0": 400, "profile?seconds=1e9": 400, "profile?seconds=NaN": 400,
		"profile?seconds=": 400, "profile?seconds=0.5": 400, "trace?seconds=x": 400, "trace?seconds=1e300": 400, "heap?seconds=abc": 400, "heap?debug=x": 400,
		"heap?gc=yes": 400, "nosuch": 404, "..%2f..%2fetc": 404, "heap?debug=1": 200, "goroutine": 200, "": 200, "trace?seconds=0.01": 200,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/debug/pprof/"+query, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d: %.100s", query, w.Code, want, w.Body)
		}
	}
}
