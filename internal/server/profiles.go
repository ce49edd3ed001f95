package server

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
)

const longestProfile = 300 // seconds

// Profiles serves Go's profiles below /debug/pprof/. Unlike pprof itself, it checks the parameters
// and bounds the duration of a profile. It answers a second concurrent profile with a conflict,
// which is not a server error.
func Profiles() http.Handler {
	// Go can take only one CPU profile at a time.
	one := make(chan struct{}, 1)
	alone := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			select {
			case one <- struct{}{}:
				defer func() { <-one }()
				h(w, r)
			default:
				http.Error(w, "another profile is in progress; try again later", http.StatusConflict)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", alone(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/trace", alone(pprof.Trace))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if text := query.Get("seconds"); query.Has("seconds") {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds > 0 && seconds <= longestProfile) {
				http.Error(w, fmt.Sprintf("seconds: want a number above 0 and at most %d", longestProfile),
					http.StatusBadRequest)
				return
			}
			// Only traces accept fractions. pprof would silently use its default for others.
			if _, err := strconv.Atoi(text); err != nil && !strings.HasSuffix(r.URL.Path, "/trace") {
				http.Error(w, "seconds: want a whole number", http.StatusBadRequest)
				return
			}
		}
		for _, name := range []string{"debug", "gc"} {
			if text := query.Get(name); query.Has(name) {
				if n, err := strconv.Atoi(text); err != nil || n < 0 || n > 2 {
					http.Error(w, name+": want 0, 1 or 2", http.StatusBadRequest)
					return
				}
			}
		}
		mux.ServeHTTP(w, r)
	})
}
