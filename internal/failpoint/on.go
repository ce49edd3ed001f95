//go:build failpoints

package failpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Env arms points at start: "relay.order.before commit=kill@3,lake.nofence=on".
const Env = "MILLRACE_FAILPOINTS"

// ErrInjected is the error of a failed step.
var ErrInjected = errors.New("failpoint: injected error")

// action is what an armed point does, once.
type action struct {
	Do    string `json:"do"`    // kill, stop, error, on or off
	At    int    `json:"at"`    // on which hit after arming, from 1
	Hits  int    `json:"hits"`  // since arming
	Fired bool   `json:"fired"` // whether the action has happened
}

var (
	mu    sync.Mutex
	armed = map[string]*action{}
)

func init() {
	for _, word := range strings.Split(os.Getenv(Env), ",") {
		if word == "" {
			continue
		}
		if err := arm(word); err != nil {
			panic(err)
		}
	}
}

// arm parses and arms "POINT=ACTION" or "POINT=ACTION@N".
func arm(word string) error {
	point, do, ok := strings.Cut(word, "=")
	at := 1
	if before, n, has := strings.Cut(do, "@"); has {
		var err error
		if at, err = strconv.Atoi(n); err != nil || at < 1 {
			return fmt.Errorf("failpoint %q: N in @N must be a number from 1", word)
		}
		do = before
	}
	switch do {
	case "kill", "stop", "error", "on", "off":
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("failpoint %q: want POINT=kill|stop|error|on|off, with @N to act on hit N only", word)
	}
	mu.Lock()
	defer mu.Unlock()
	armed[point] = &action{Do: do, At: at}
	return nil
}

// Hit marks a step. It returns nil unless the step is to fail. If the process is to be killed or
// frozen, that happens here.
func Hit(point string) error {
	mu.Lock()
	a := armed[point]
	if a == nil || a.Fired || a.Do == "on" || a.Do == "off" {
		mu.Unlock()
		return nil
	}
	if a.Hits++; a.Hits < a.At {
		mu.Unlock()
		return nil
	}
	a.Fired = true
	mu.Unlock()
	switch a.Do {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) // the observer sends SIGCONT
		return nil
	default:
		return fmt.Errorf("%w: %s", ErrInjected, point)
	}
}

// On reports whether a switch is on.
func On(point string) bool {
	mu.Lock()
	defer mu.Unlock()
	a := armed[point]
	return a != nil && a.Do == "on"
}

// Handler arms points by HTTP: POST with "POINT=ACTION@N" as its body arms one, GET returns all,
// DELETE disarms all.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			body := make([]byte, 1024)
			n, _ := r.Body.Read(body)
			if err := arm(string(body[:n])); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
		case http.MethodDelete:
			mu.Lock()
			clear(armed)
			mu.Unlock()
		default:
			mu.Lock()
			defer mu.Unlock()
			_ = json.NewEncoder(w).Encode(armed)
		}
	})
}
