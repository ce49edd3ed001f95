package redis_test

import (
	"testing"
	"time"

	"github.com/millrace/millrace/internal/redis"
)

// A lease has one owner until it ends, and only its owner can renew it.
func TestLease(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		d := open(t, cfg).Documents(view(t))
		begun := time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)
		for i, c := range []struct {
			owner string
			after time.Duration
			got   bool
		}{
			{"a", 0, true}, {"b", 5 * time.Second, false}, {"a", 6 * time.Second, true},
			{"b", 15 * time.Second, false}, {"b", 16 * time.Second, true}, {"a", 17 * time.Second, false},
		} {
			if got, err := d.Lease(t.Context(), c.owner, begun.Add(c.after), 10*time.Second); err != nil || got != c.got {
				t.Errorf("step %d: %v, %v, want %v", i, got, err, c.got)
			}
		}
	})
}
