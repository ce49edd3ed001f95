package relay_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// reader is a consumer that keeps its records and position, like a sink.
type reader struct {
	mu       sync.Mutex
	next     map[kafka.TopicPartition]int64
	events   [partitions][]event.Event
	last     time.Time     // when the last event arrived
	longest  time.Duration // longest pause since reset
	consumed int
}

// follow reads the topic as a member of a group, until the test ends.
func (b broker) follow(t *testing.T) *reader {
	t.Helper()
	r := &reader{next: map[kafka.TopicPartition]int64{}}
	c, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Config: b.Config, Group: b.order.Topic, Topics: []string{b.order.Topic},
		Assigned: func([]kafka.TopicPartition) map[kafka.TopicPartition]int64 { return r.next },
		Revoked:  func([]kafka.TopicPartition, bool) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var polling sync.WaitGroup
	polling.Go(func() {
		for ctx.Err() == nil {
			m, err := c.Poll(50 * time.Millisecond)
			if err != nil {
				t.Errorf("the reader stopped: %v", err)
				return
			}
			if m != nil && !m.End {
				r.take(t, m)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		polling.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// take keeps an event and measures the pause before it.
func (r *reader) take(t *testing.T, m *kafka.Message) {
	e, err := event.FromRecord(m.Key, m.Value, m.Headers)
	if err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !r.last.IsZero() {
		r.longest = max(r.longest, now.Sub(r.last))
	}
	r.last = now
	r.consumed++
	r.next[m.TopicPartition] = m.Offset + 1
	r.events[m.Partition] = append(r.events[m.Partition], e)
}

// reset starts a new measurement of the longest pause.
func (r *reader) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.longest, r.consumed = 0, 0
}

// read returns the number of events so far.
func (r *reader) read() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, events := range r.events {
		n += len(events)
	}
	return n
}

// since returns the number of events since reset, and the longest pause between two.
func (r *reader) since() (int, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.consumed, r.longest
}

// Of three nodes, the leader, or the coordinator of the transactions, is killed under load. No
// event is lost, duplicated or out of order, and the relay and a consumer recover. A relay whose transaction
// the broker aborts is started again, as by its supervisor.
func TestKillLeaderUnderLoad(t *testing.T) {
	t.Parallel()
	killCount(t)
	c := &server.Cluster{Nodes: 3}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	b := newBroker(t, c.Brokers(t))
	s := b.newStore(t)
	stop := load(t, newWriter(s))
	x := supervise(t, b.newRelay(t, s))
	r := b.follow(t)
	flows := func(what string) {
		t.Helper()
		r.reset()
		eventually(t, func() bool { n, _ := r.since(); return n > 1000 }, "events flow %s", what)
	}
	flows("at first")
	for _, victim := range []struct {
		what string
		find func() (int, error)
	}{
		{"the leader of a partition", func() (int, error) { return c.Leader(t.Context(), b.order.Topic, 0) }},
		{"the coordinator of the relay's transactions", func() (int, error) {
			return c.Coordinator(t.Context(), "relay-"+b.order.Service)
		}},
	} {
		node, err := victim.find()
		if err != nil {
			t.Fatal(err)
		}
		r.reset()
		if err := c.KillNode(node); err != nil {
			t.Fatal(err)
		}
		// Records that were in flight when the node died arrive at once. The pause ends when the
		// cluster works without it.
		eventually(t, func() bool {
			now, err := victim.find()
			return err == nil && now != node
		}, "another node is %s", victim.what)
		published := x.relay.Progress().Published
		eventually(t, func() bool {
			select {
			case <-x.done:
				t.Fatalf("the relay stopped: %v", x.err)
			default:
			}
			return x.relay.Progress().Published > published+1000
		}, "the relay publishes without %s", victim.what)
		_, before := r.since()
		flows("without " + victim.what)
		_, after := r.since()
		t.Logf("%s was killed: no event for %.1f s", victim.what, max(before, after).Seconds())
		if err := c.RestartNode(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitInSync(t.Context()); err != nil {
			t.Fatal(err)
		}
		flows("with all nodes")
	}
	total := stop()
	x.await(t, s)
	if err := x.stop(); err != nil {
		t.Fatal(err)
	}
	b.checkEqual(t, s)
	eventually(t, func() bool { return r.read() >= total }, "the consumer has read all %d events", total)
	r.mu.Lock()
	defer r.mu.Unlock()
	compare(t, s, r.events)
	t.Logf("%d events, each once and in order", total)
}
