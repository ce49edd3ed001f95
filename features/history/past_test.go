package history

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

// onlineRunner is online.Runner, or online.SharedRunner.
type onlineRunner interface {
	Run(ctx context.Context) error
	Ready() error
	Store() online.Reader
}

// openOnline returns a runner of the world's features: in memory, or in Redis if there is a client.
func (w *world) openOnline(t *testing.T, past online.Past, client *redis.Client) onlineRunner {
	t.Helper()
	groups, c := []*features.Group{w.group}, w.config(nil)
	config := online.Config{Brokers: c.Brokers, WriteDeadLetters: c.WriteDeadLetters, Logger: streamstest.Quiet,
		Past: past}
	if client != nil {
		store, err := online.NewShared(client, groups, online.Options{})
		must(t, err)
		return online.NewSharedRunner(store, config)
	}
	store, err := online.New(groups, online.Options{})
	must(t, err)
	return online.NewRunner(store, config)
}

// online runs the online features without a snapshot, and returns a function that compares their vectors
// with those of all facts, once they are ready.
func (w *world) online(t *testing.T, past online.Past, client *redis.Client) (
	r onlineRunner, check func(facts []features.Fact),
) {
	t.Helper()
	r = w.openOnline(t, past, client)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return r, func(facts []features.Fact) {
		t.Helper()
		q, err := r.Store().Compile(w.group.Name)
		must(t, err)
		for range 30 {
			entities, at := []string{w.entity(), "unknown", w.entity()}, time.UnixMicro(w.at())
			var found []online.Vector
			polltest.Until(t, "the online features are ready", func() bool {
				if r.Ready() != nil {
					return false
				}
				found, err = r.Store().Lookup(t.Context(), q, entities, at, nil)
				if err != nil && !errors.Is(err, online.ErrUnavailable) {
					t.Fatal(err)
				}
				return err == nil
			})
			have := make([]features.Vector, len(found))
			for i, v := range found {
				have[i] = features.Vector{Entity: v.Entity, Found: v.Found, Values: v.Values}
			}
			w.compare(t, have, entities, facts, at, time.Time{})
		}
	}
}

// inEachStore runs a test with the facts in memory and in Redis, whose client it gets.
func inEachStore(t *testing.T, test func(t *testing.T, client *redis.Client)) {
	t.Run("memory", func(t *testing.T) { test(t, nil) })
	t.Run("Redis", func(t *testing.T) { test(t, openRedis(t, oneRedis.Config(t))) })
}

func openRedis(t *testing.T, cfg redis.Config) *redis.Client {
	t.Helper()
	c, err := redis.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// Vectors are complete if the log has lost its first records, without a snapshot and after Redis has lost
// its data: the facts of these records come from the tables, and the rest from the log.
func TestVectorsWithoutTheBeginningOfTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 21)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	stop := running(t, h)
	w.trade(t, 60)
	w.filled(t, h)
	stop()
	// The tables reach further than the beginning of the log, which has corrections of what is gone.
	middle, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	w.trade(t, 40)
	running(t, h)
	w.filled(t, h)
	for p, offset := range middle {
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	t.Run("Redis is lost", func(t *testing.T) { w.loseRedis(t, h) })
	inEachStore(t, func(t *testing.T, client *redis.Client) {
		if client == nil { // processes with another Redis would share the partitions
			_, check := w.online(t, h, nil)
			check(w.facts)
		}
		// Without the tables, the same facts are missing.
		r, _ := w.online(t, nil, client)
		polltest.Until(t, "the online features are ready", func() bool { return r.Ready() == nil })
		all, _ := r.Store().Size()
		q, err := r.Store().Compile(w.group.Name, "n_lifetime")
		must(t, err)
		var have, want int64
		for _, e := range []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"} {
			found, err := r.Store().Lookup(t.Context(), q, []string{e}, w.now, nil)
			must(t, err)
			have += found[0].Values[0].Int
			want += features.Evaluate(w.group, map[string][]features.Fact{w.group.Sources[0].Name: w.facts}, e, w.now,
				time.Time{}).Values[3].Int
		}
		if have >= want || all == 0 {
			t.Errorf("%d facts of %d entities are online, and %d in all: this test shows nothing", have, all, want)
		}
	})
}

// loseRedis fills a Redis of its own, which loses everything, an older copy of which comes back, and which
// loses everything while it is restored. Two processes fill it.
func (w *world) loseRedis(t *testing.T, h *History) {
	t.Helper()
	var servers server.Servers
	t.Cleanup(func() { must(t, servers.Stop()) })
	client := openRedis(t, servers.Config(t))
	past := &pausing{History: h, reached: make(chan struct{}), resume: make(chan struct{})}
	first, check := w.online(t, past, client)
	<-past.reached
	if first.Ready() == nil {
		t.Error("the features are ready before the facts of the tables are there")
	}
	must(t, servers.FlushAll(0)) // the first process does not know of it
	_, checkOther := w.online(t, h, openRedis(t, servers.Config(t)))
	checkOther(w.facts)
	close(past.resume)
	check(w.facts)
	must(t, servers.Save(0))
	for _, withData := range []bool{true, false} {
		must(t, servers.Kill(0))
		must(t, servers.Restart(0, withData))
		polltest.Until(t, "the loss is noticed", func() bool { return withData || first.Ready() != nil })
		check(w.facts)
		checkOther(w.facts)
	}
}

// pausing is a Past that waits in the middle of its first facts.
type pausing struct {
	*History
	reached, resume chan struct{}
	once            sync.Once
}

func (p *pausing) Facts(ctx context.Context, source string, part, parts int, each func(features.Fact) error) error {
	if part == parts/2 {
		p.once.Do(func() {
			close(p.reached)
			select {
			case <-p.resume:
			case <-ctx.Done():
			}
		})
	}
	return p.History.Facts(ctx, source, part, parts, each)
}

// broken is a Past that fails in the middle of the first attempts.
type broken struct {
	*History
	failures int
}

func (b *broken) Facts(ctx context.Context, source string, part, parts int, each func(features.Fact) error) error {
	if part == parts/2 && b.failures > 0 {
		b.failures--
		return errors.New("the server has gone")
	}
	return b.History.Facts(ctx, source, part, parts, each)
}

// After an error in the middle, the facts are read again.
func TestPastFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 22)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	running(t, h)
	w.trade(t, 30)
	w.filled(t, h)
	ends, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	for p, offset := range ends {
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	inEachStore(t, func(t *testing.T, client *redis.Client) {
		_, check := w.online(t, &broken{h, 2}, client)
		check(w.facts)
	})
}

// Tables that do not reach up to the log, or that are of another topic, are not used.
func TestPastOfAnotherLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 23)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	stop := running(t, h)
	w.trade(t, 30)
	w.filled(t, h)
	stop()
	w.trade(t, 30)
	middle, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	gone := len(w.facts)
	w.trade(t, 30)
	for p, offset := range middle { // after the records that the tables have
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	inEachStore(t, func(t *testing.T, client *redis.Client) {
		_, check := w.online(t, h, client)
		check(w.facts[gone:])
	})
}
