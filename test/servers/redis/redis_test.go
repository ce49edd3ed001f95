package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/test/servers/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServers checks that every variant works, can be flushed, and has the saved data or none after
// kill -9.
func TestServers(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*redis.Servers{
		"one":            {},
		"secure":         {Secure: true},
		"cluster":        {Nodes: 3},
		"secure cluster": {Nodes: 3, Secure: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			addr := s.Addr(t)
			t.Cleanup(func() {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
			if got, want := strings.Count(addr, ",")+1, max(1, s.Nodes); got != want {
				t.Fatalf("%d addresses, want %d", got, want)
			}
			mb, err := s.ResidentMB(0)
			t.Logf("started in %v, a node has %d MB (%v)", time.Since(begun), mb, err)
			last := max(1, s.Nodes) - 1
			key := keyOn(t, s, last)
			do := func(command ...string) string {
				t.Helper()
				answer, err := s.Do(t.Context(), last, command...)
				if err != nil {
					t.Fatal(err)
				}
				return answer
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			do("SET", key, "saved")
			must(s.Save(last))
			do("SET", key, "not saved")
			must(s.Kill(last))
			must(s.Restart(last, true))
			if got := do("GET", key); got != "saved" {
				t.Errorf("after a restart with data: %q", got)
			}
			must(s.Pause(last))
			soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if got, err := s.Do(soon, last, "GET", key); err == nil {
				t.Errorf("a paused server answered %q", got)
			}
			must(s.Resume(last))
			do("SET", key, "again")
			must(s.FlushAll(last))
			if got := do("GET", key); got != "" {
				t.Errorf("after FLUSHALL: %q", got)
			}
			do("SET", key, "again")
			must(s.Kill(last))
			must(s.Restart(last, false))
			if got := do("GET", key); got != "" {
				t.Errorf("after a restart without data: %q", got)
			}
		})
	}
}

// keyOn returns a key that is stored on a node.
func keyOn(t *testing.T, s *redis.Servers, node int) string {
	t.Helper()
	for i := range 1000 {
		key := fmt.Sprint("key", i)
		if _, err := s.Do(t.Context(), node, "GET", key); err == nil {
			return key
		}
	}
	t.Fatal("no key is stored on the node")
	return ""
}
