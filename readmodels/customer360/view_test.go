package customer360_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

// The servers of this package. Tests that use one of them run one after the other, and drop the
// view before.
var servers = map[string]*server.Servers{"redis": {}, "redis cluster": {Nodes: 3}}

func TestMain(m *testing.M) {
	if servers := os.Getenv(childOf); servers != "" {
		os.Exit(child(servers))
	}
	code := m.Run()
	for name, s := range servers {
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			code = 1
		}
	}
	if err := goleak.Find(bufferPools); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// bufferPools is a goroutine of LevelDB in the embedded Redis, which ends a second after the
// database is closed.
var bufferPools = goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")

// onEvery runs a test on every kind of server: the embedded one, a real one, and a cluster.
func onEvery(t *testing.T, test func(t *testing.T, client *redis.Client)) {
	t.Run("embedded", func(t *testing.T) { test(t, newRedis(t)) })
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		t.Run(name, func(t *testing.T) {
			client := open(t, servers[name].Config(t))
			drop(t, client)
			test(t, client)
		})
	}
}

func drop(t testing.TB, client *redis.Client) {
	t.Helper()
	if err := client.Documents(customer360.Name).Drop(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// newRedis starts an embedded Redis.
func newRedis(t testing.TB) *redis.Client {
	t.Helper()
	_, client := serveRedis(t)
	return client
}

// serveRedis starts an embedded Redis, and also returns its address.
func serveRedis(t testing.TB) (redis.Config, *redis.Client) {
	t.Helper()
	e, err := embedded.Start(t.Context(), embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	cfg := redis.Config{Addr: e.Addr()}
	return cfg, open(t, cfg)
}

func open(t testing.TB, cfg redis.Config) *redis.Client {
	t.Helper()
	c, err := redis.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// fataler is the part of testing.TB and rapid.T that checks use.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

// versionedAsExpected fails the test unless the view's fragments are those of the events that have
// versions: all but behaviour.
func versionedAsExpected(t fataler, v *customer360.View, w *world) {
	t.Helper()
	for _, a := range []event.Aggregate{event.Customer, event.Order, event.Identity} {
		got, err := v.Digest(context.Background(), a)
		if err != nil {
			t.Fatal(err)
		}
		want, err := customer360.Facts(nil).ExpectedDigest(w.logs[a.Topic].All())
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got.Streams, want.Streams) {
			t.Fatalf("the view has %d fragments of %s, want %d, or the same ones with other content",
				len(got.Streams), a.Name, len(want.Streams))
		}
	}
}

// asExpected fails the test unless the view's fragments are those of the world.
func asExpected(t fataler, v *customer360.View, w *world) {
	t.Helper()
	versionedAsExpected(t, v, w)
	got, err := v.Digest(context.Background(), event.Behavior)
	if err != nil {
		t.Fatal(err)
	}
	want, err := customer360.ExpectedBehavior(func(yield func(streams.Record, error) bool) {
		for name, records := range w.records() {
			for _, r := range records {
				if strings.HasPrefix(name, event.Behavior.Topic) && !yield(r, nil) {
					return
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.Streams, want.Streams) {
		t.Fatalf("the view has %d fragments of visitors, want %d, or the same ones with other content",
			len(got.Streams), len(want.Streams))
	}
}

// apply delivers all records of a world in random batches, some of them twice.
func apply(t fataler, v *customer360.View, w *world, rng *rand.Rand) {
	t.Helper()
	for batch := range w.interleaved(rng) {
		if err := v.Apply(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
	}
}

// profiles returns the digest of all profiles of the view, by person.
func profiles(t fataler, v *customer360.View) map[string]string {
	t.Helper()
	d, err := v.ProfilesDigest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for stream, sum := range d.Streams {
		sums[stream] = fmt.Sprint(sum)
	}
	return sums
}

// TestAnyOrderOfDeliveryGivesTheSameProfiles delivers the partitions in different interleavings,
// with redeliveries and several feeders, such as a zombie beside the new owner.
func TestAnyOrderOfDeliveryGivesTheSameProfiles(t *testing.T) {
	onEvery(t, func(t *testing.T, client *redis.Client) {
		w := newWorld(t)
		rng := rand.New(rand.NewPCG(1, 0))
		for range 600 {
			w.random(rng)
		}
		var first map[string]string
		for round := range 3 {
			drop(t, client)
			v := customer360.New(client, streamstest.Quiet)
			var feeders sync.WaitGroup
			for n := range 1 + round%2 {
				feeders.Go(func() { apply(t, v, w, rand.New(rand.NewPCG(uint64(round), uint64(n)))) })
			}
			feeders.Wait()
			asExpected(t, v, w)
			got := profiles(t, v)
			if first == nil {
				first = got
			}
			if !maps.Equal(got, first) || len(got) < 2 {
				t.Fatalf("round %d has other profiles: %v, first %v", round, got, first)
			}
		}
	})
}

// TestMergeThenUnmergeEqualsNeverMerged compares the digests of all profiles of two histories,
// which differ only in a merge that is taken back, with orders and visits in between.
func TestMergeThenUnmergeEqualsNeverMerged(t *testing.T) {
	client := newRedis(t)
	v := customer360.New(client, streamstest.Quiet)
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		// Merging 91 and 92 again and again, with what else happens to both in between.
		history := func(merges bool) *world {
			w, rng := newWorld(t), rand.New(rand.NewPCG(seed, 0))
			merge := func(joined bool) {
				w.at() // the same time of everything else, with and without the merge
				w.now = w.now.Add(-1)
				if now := w.now; merges {
					w.merge(91, 92, joined)
					w.now = now
				}
			}
			for _, n := range []int{91, 92} {
				w.register(n)
				w.link(n, anonymousID, fmt.Sprintf("browser-%d", n), true)
				w.place(90+n, n, gbp(int64(n)))
			}
			w.merge(91, 1, rng.IntN(2) == 0)
			for range 1 + rng.IntN(2) {
				merge(true)
				for n := range rng.IntN(15) {
					w.random(rng)
					w.visit(fmt.Sprintf("browser-%d", 91+n%2), fmt.Sprint("m", len(w.behavior)), "Viewed")
				}
				merge(false)
			}
			for range rng.IntN(10) {
				w.random(rng)
			}
			return w
		}
		drop(t, client)
		apply(rt, v, history(false), rand.New(rand.NewPCG(seed, 1)))
		never := profiles(rt, v)
		drop(t, client)
		apply(rt, v, history(true), rand.New(rand.NewPCG(seed, 2)))
		if after := profiles(rt, v); !maps.Equal(after, never) || len(never) < 2 {
			rt.Fatalf("after the merge was taken back: %v\nnever merged: %v", after, never)
		}
	})
}

// TestUnreadableRecordsAreReported checks that an unreadable record of any topic is reported, takes
// no version and no offset, and does not keep the others from being applied.
func TestUnreadableRecordsAreReported(t *testing.T) {
	client := newRedis(t)
	v := customer360.New(client, streamstest.Quiet)
	w := newWorld(t)
	w.register(1)
	w.place(1, 1, gbp(1))
	w.visit("browser-1", "a", "Viewed")
	var batch []streams.Record
	for _, some := range w.records() {
		batch = append(batch, some...)
	}
	want := map[string]bool{}
	for _, r := range slices.Clone(batch) {
		bad := r
		bad.Event.Data, bad.Offset = []byte{0xff}, 100
		bad.Event.Version = r.Event.Version + 1
		if r.Topic == event.Behavior.Topic {
			bad.Event.Version = 0
		}
		batch = append(batch, bad)
		want[r.Topic] = true
	}
	for range 2 {
		err := v.Apply(t.Context(), batch)
		unreadable, ok := err.(*streams.UnreadableError) //nolint:errorlint // that it is bare says that nothing else went wrong
		if !ok || len(unreadable.Records) != len(want) {
			t.Fatalf("got %v", err)
		}
		for _, r := range unreadable.Records {
			if !want[r.Topic] || r.Offset != 100 {
				t.Errorf("reported %s/%d", r.Topic, r.Offset)
			}
		}
		asExpected(t, v, w)
	}
	// A gap is not a dead letter: the sink has lost something.
	gap := batch[0]
	for _, r := range batch {
		if r.Topic == event.Order.Topic {
			gap = r
		}
	}
	gap.Event.Version, gap.Event.Data = 7, w.logs[event.Order.Topic].Events[0].Data
	if err := v.Apply(t.Context(), []streams.Record{gap}); !errors.Is(err, streams.ErrLost) {
		t.Errorf("an event with a gap before it: %v", err)
	}
}

// TestViewFollowsAllTopics feeds the view from a broker, loses its data, and rebuilds it. References
// that were lost alone are restored by an inspection.
func TestViewFollowsAllTopics(t *testing.T) {
	cfg := streamstest.NewBroker(t)
	logs := map[string]*streamstest.Log{}
	for _, a := range customer360.Sources() {
		logs[a.Topic] = streamstest.NewLog(t, cfg, a.Topic)
	}
	feed := func(t *testing.T, client *redis.Client) {
		w := newWorld(t).on(logs)
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		written := map[string]int{}
		for topic, l := range logs {
			written[topic] = len(l.Events)
		}
		for range 200 {
			w.random(rng)
		}
		for topic, l := range logs {
			l.Write(t, l.Events[written[topic]:]...)
		}
		logs[event.Behavior.Topic].Write(t, w.behavior...)
		v := customer360.New(client, streamstest.Quiet)
		r := v.Runtime(cfg, nil, streamstest.Quiet)
		stop := streamstest.Start(t, r)
		defer stop()
		streamstest.CatchUp(t, r)
		versionedAsExpected(t, v, w) // fragments of visitors have the broker's offsets, not the world's
		before := profiles(t, v)
		drop(t, client)
		streamstest.Eventually(t, "the lost view is rebuilt", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			return r.CatchUp(ctx) == nil && maps.Equal(profiles(t, v), before)
		})
		versionedAsExpected(t, v, w)
		status, err := v.Status(t.Context())
		if err != nil || status.Lag != 0 || !status.Known || status.Documents == 0 {
			t.Errorf("status %+v, %v", status, err)
		}
	}
	t.Run("embedded", func(t *testing.T) { feed(t, newRedis(t)) })
	t.Run("redis", func(t *testing.T) {
		client := open(t, servers["redis"].Config(t))
		drop(t, client)
		feed(t, client)
	})
}
