package relay_test

import (
	"context"
	"testing"

	"github.com/millrace/millrace/ingest/relay"
)

// turns returns a Hold for relays of this process.
func turns() func(*relay.Config) {
	turn := make(chan struct{}, 1)
	return func(c *relay.Config) {
		c.Hold = func(ctx context.Context) (func(), error) {
			select {
			case turn <- struct{}{}:
				return func() { <-turn }, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// Of two relays that take turns, one publishes. The other one continues when the first ends, and also
// after a relay that takes no turns has fenced it.
func TestStandby(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s, hold := b.newStore(t), turns()
		w := newWriter(s)
		w.append(t, 10)
		first := run(t, b.newRelay(t, s, hold))
		first.await(t, s)
		second := run(t, b.newRelay(t, s, hold))
		eventually(t, func() bool { return second.relay.Progress().Standby }, "the second relay waits")
		w.append(t, 10)
		first.await(t, s)
		if p := second.relay.Progress(); p.Live || p.Published > 0 {
			t.Errorf("the standby has published: %+v", p)
		}

		if err := first.stop(); err != nil {
			t.Fatal(err)
		}
		w.append(t, 10)
		second.await(t, s)
		if p := second.relay.Progress(); !p.Live || p.Standby {
			t.Errorf("the second relay publishes, but says %+v", p)
		}

		// A relay without turns, as of an earlier release.
		stray := run(t, b.newRelay(t, s))
		eventually(t, func() bool { return stray.relay.Progress().Live }, "the third relay has taken over")
		published := second.relay.Progress().Published
		eventually(t, func() bool {
			w.append(t, 1)
			return second.relay.Progress().Published > published+20
		}, "the second relay publishes again")
		_ = stray.stop() // it was fenced, or stops now
		w.append(t, 10)
		second.await(t, s)
		if err := second.stop(); err != nil {
			t.Fatal(err)
		}
		b.checkEqual(t, s)
	})
}
