package online_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	server "github.com/millrace/millrace/test/servers/redis"
)

// envSharedVictim makes this binary a process that feeds a Redis until it is killed: its value is the
// brokers, the topic and the address of Redis. If a number follows, it restores the expired events, says
// when it comes to that part of them, and pauses until it was suspended and continues.
const envSharedVictim = "MILLRACE_TEST_SHARED_VICTIM"

func sharedVictim(args string) error {
	part := strings.Split(args, " ")
	client, err := redis.Open(context.Background(), redis.Config{Addr: part[2]})
	if err != nil {
		return err
	}
	store, err := online.NewShared(client, []*features.Group{household(part[1])}, online.Options{})
	if err != nil {
		return err
	}
	c := config(part[0], "")
	if len(part) > 3 {
		past, err := newArchive(context.Background(), part[0], household(part[1]))
		if err != nil {
			return err
		}
		past.pauseAt(part[3])
		c.Past = past
	}
	return online.NewSharedRunner(store, c).Run(context.Background())
}

// household is spending, and all of it once more as that of the entity "all", whose facts are on every
// partition.
func household(topic string) *features.Group {
	g := spending(topic)
	g.Name = "household"
	project := g.Sources[0].Project
	g.Sources[0].Project = func(e event.Event) ([]features.Fact, error) {
		facts, err := project(e)
		if err == nil {
			all := facts[0]
			all.Entity, all.Key = "all", e.Stream+" "+all.Key
			facts = append(facts, all)
		}
		return facts, err
	}
	return g
}

// sharedLog is a topic whose facts are known with their offsets.
type sharedLog struct {
	*topicLog
	mu    sync.Mutex
	facts []features.Fact
}

func newSharedLog(t *testing.T) *sharedLog {
	t.Helper()
	l := &sharedLog{topicLog: newLog(t)}
	l.group = household(l.topic)
	return l
}

// write appends events to a partition: "key amount", or "key" to retract.
func (l *sharedLog) write(t *testing.T, partition int32, texts ...string) {
	t.Helper()
	ends, err := l.Ends(t.Context(), l.topic)
	must(t, err)
	var records []fetchtest.Record
	var written []features.Fact
	for i, text := range texts {
		l.next++
		e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "test", Stream: fmt.Sprintf("c%d", partition),
			Version: l.next, Type: "test.Event", Data: []byte(text), OccurredAt: start, RecordedAt: start,
			Position: event.Position{Sequence: l.next}}
		records = append(records, fetchtest.Event(partition, e))
		facts, err := l.group.Sources[0].Project(e)
		must(t, err)
		for j := range facts {
			facts[j].Origin = features.Origin{Partition: partition, Offset: ends[partition] + int64(i), Index: int32(j)}
		}
		written = append(written, facts...)
	}
	// Known before they are on the log, because a vector may have them at once.
	l.mu.Lock()
	l.facts = append(l.facts, written...)
	l.mu.Unlock()
	must(t, l.Commit(t.Context(), l.topic, records...))
}

// backend is a runner of any kind.
type backend interface {
	Store() online.Reader
	Ready() error
}

// lookup compares the vectors of all entities with Evaluate as of their positions.
func (l *sharedLog) lookup(ctx context.Context, r backend) (positions map[int32]int64, err error) {
	q, err := r.Store().Compile("household")
	if err != nil {
		return nil, err
	}
	at := start.Add(100 * time.Minute)
	vectors, err := r.Store().Lookup(ctx, q, []string{"c0", "c1", "all", "nobody"}, at, nil)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range vectors {
		positions = map[int32]int64{}
		for p, at := range v.Positions.Topics[0].Partitions {
			if at.Next > 0 {
				positions[int32(p)] = at.Next
			}
		}
		before := slices.DeleteFunc(slices.Clone(l.facts), func(f features.Fact) bool {
			return f.Origin.Offset >= positions[f.Origin.Partition]
		})
		want := features.Evaluate(l.group, map[string][]features.Fact{"payments": before}, v.Entity, at, time.Time{})
		for i, o := range q.Outputs {
			if v.Found != want.Found || !v.Values[i].Equal(want.Values[i]) {
				return nil, fmt.Errorf("%s of %s as of %v is %+v, want %+v", o.Name, v.Entity, positions, v.Values[i],
					want.Values[i])
			}
		}
	}
	return positions, nil
}

// settled waits until a runner is ready and its vectors have everything that is on the log.
func (l *sharedLog) settled(t *testing.T, r backend) {
	t.Helper()
	ends, err := l.Ends(t.Context(), l.topic)
	must(t, err)
	maps.DeleteFunc(ends, func(_ int32, end int64) bool { return end == 0 }) // nothing to read
	polltest.Until(t, "the vectors have everything", func() bool {
		if r.Ready() != nil {
			return false
		}
		positions, err := l.lookup(t.Context(), r)
		if err != nil && !errors.Is(err, online.ErrUnavailable) {
			t.Fatal(err)
		}
		return maps.Equal(positions, ends)
	})
}

// watch looks up vectors until stop is called, which returns how many answers there were.
func (l *sharedLog) watch(t *testing.T, r backend) (stop func() int) {
	t.Helper()
	var done atomic.Bool
	answers, ended := 0, make(chan error, 1)
	go func() {
		for !done.Load() {
			if r.Ready() != nil {
				continue
			}
			switch _, err := l.lookup(context.Background(), r); {
			case err == nil:
				answers++
			case !errors.Is(err, online.ErrUnavailable):
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	stop = sync.OnceValue(func() int {
		done.Store(true)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return answers
	})
	t.Cleanup(func() { stop() })
	return stop
}

// shared runs a runner with a client of its own until the test ends or stop is called.
func (l *sharedLog) shared(t *testing.T, cfg redis.Config, o online.Options) (r *online.SharedRunner, stop func()) {
	t.Helper()
	return l.sharedBy(t, cfg, o, nil)
}

// sharedBy is shared with a Past.
func (l *sharedLog) sharedBy(t *testing.T, cfg redis.Config, o online.Options, past online.Past) (
	r *online.SharedRunner, stop func(),
) {
	t.Helper()
	store, err := online.NewShared(openRedis(t, cfg), []*features.Group{l.group}, o)
	must(t, err)
	c := config(broker.Brokers, "")
	c.Past = past
	r = online.NewSharedRunner(store, c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
	})
	t.Cleanup(stop)
	return r, stop
}

// While members of the group come and go, by their own will and by kill -9, every vector is exact as of
// its positions, and in the end nothing is lost or doubled.
func TestSharedRebalance(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	cfg := oneRedis.Config(t)
	l.write(t, 0, "1 1", "2 2")
	reader, _ := l.shared(t, cfg, online.Options{})
	l.settled(t, reader)
	answers := l.watch(t, reader)
	exe, err := os.Executable()
	must(t, err)
	for round := range 3 {
		other, leave := l.shared(t, cfg, online.Options{})
		for n := range 20 {
			l.write(t, int32(n%partitions), fmt.Sprintf("%d %d", n, round), fmt.Sprintf("%d 3", n+7))
			l.write(t, int32(n%partitions), strconv.Itoa(n/2)) // a retraction
		}
		l.settled(t, other)
		leave()
		victim := exec.CommandContext(t.Context(), exe)
		victim.Env = append(os.Environ(), envSharedVictim+"="+strings.Join([]string{broker.Brokers, l.topic, cfg.Addr}, " "))
		must(t, victim.Start())
		for n := range 20 {
			l.write(t, int32(n%partitions), fmt.Sprintf("%d %d", n+5, round))
		}
		must(t, victim.Process.Kill())
		_ = victim.Wait()
		l.settled(t, reader)
	}
	if n := answers(); n < 100 {
		t.Errorf("only %d answers", n)
	}
}

// A process that was suspended, and whose partitions others have read since, changes nothing when it
// continues.
func TestSharedZombie(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	cfg := oneRedis.Config(t)
	exe, err := os.Executable()
	must(t, err)
	zombie := exec.CommandContext(t.Context(), exe)
	zombie.Env = append(os.Environ(), envSharedVictim+"="+strings.Join([]string{broker.Brokers, l.topic, cfg.Addr}, " "))
	must(t, zombie.Start())
	t.Cleanup(func() {
		_ = zombie.Process.Kill()
		_ = zombie.Wait()
	})
	client := openRedis(t, cfg)
	store, err := online.NewShared(client, []*features.Group{l.group}, online.Options{})
	must(t, err)
	l.write(t, 0, "1 1", "2 2")
	l.write(t, 1, "1 5")
	polltest.Until(t, "the process writes", func() bool {
		epoch, err := store.Facts().Epoch(t.Context())
		if err != nil {
			return false
		}
		shards, err := store.Facts().Shards(t.Context(), epoch)
		return err == nil && len(shards[0].Positions) == partitions
	})
	must(t, zombie.Process.Signal(syscall.SIGSTOP))
	for n := range 20 {
		l.write(t, int32(n%partitions), fmt.Sprintf("%d %d", n, n+1), strconv.Itoa(n/2))
	}
	r, _ := l.shared(t, cfg, online.Options{})
	l.settled(t, r)
	answers := l.watch(t, r)
	must(t, zombie.Process.Signal(syscall.SIGCONT))
	for n := range 20 {
		l.write(t, int32(n%partitions), fmt.Sprintf("%d %d", n, n+50))
	}
	l.settled(t, r)
	answers()
}

// Whichever answer of Redis is lost, nothing is lost or doubled.
func TestSharedLostAnswers(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	cut := newCutter(t, oneRedis.Addr(t))
	r, _ := l.shared(t, redis.Config{Addr: cut.addr()}, online.Options{})
	l.settled(t, r)
	for round := range 20 {
		cut.after.Store(int64(round + 1))
		l.write(t, int32(round%partitions), fmt.Sprintf("%d %d", round/4, round), strconv.Itoa(round/3))
		polltest.Until(t, "an answer is lost", func() bool { return cut.after.Load() <= 0 })
		l.settled(t, r)
	}
}

// cutter is a proxy that cuts a connection instead of passing on an answer: the next one after so many.
type cutter struct {
	listener net.Listener
	after    atomic.Int64
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cutter{listener: listener}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			open = append(open, client, upstream)
			mu.Unlock()
			pass := func(from, to net.Conn, answers bool) {
				defer func() { _, _ = from.Close(), to.Close() }()
				buffer := make([]byte, 1<<20)
				for {
					n, err := from.Read(buffer)
					if err != nil {
						return
					}
					if answers && c.after.Load() > 0 && c.after.Add(-1) == 0 {
						return
					}
					if _, err := to.Write(buffer[:n]); err != nil {
						return
					}
				}
			}
			all.Go(func() { pass(client, upstream, false) })
			all.Go(func() { pass(upstream, client, true) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return c
}

func (c *cutter) addr() string { return c.listener.Addr().String() }

// Redis loses everything, or comes back with an older copy, or a node of a cluster does: no vector is of
// the past without saying so, and the log restores what is missing.
func TestSharedLoss(t *testing.T) {
	t.Parallel()
	for name, servers := range map[string]*server.Servers{"single": {}, "cluster": {Nodes: 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { must(t, servers.Stop()) })
			l := newSharedLog(t)
			l.write(t, 0, "1 1", "2 2")
			l.write(t, 1, "1 5")
			r, _ := l.shared(t, servers.Config(t), online.Options{})
			l.settled(t, r)
			answers := l.watch(t, r)
			for node := range max(1, servers.Nodes) {
				must(t, servers.Save(node))
				l.write(t, 0, "3 3", "1")
				l.write(t, 1, "1 6")
				l.settled(t, r)
				if node == 0 || node%2 == 1 {
					must(t, servers.Kill(node))
					must(t, servers.Restart(node, true)) // an older copy
					l.settled(t, r)
				}
				if node%2 == 0 {
					must(t, servers.Kill(node))
					must(t, servers.Restart(node, false))
					l.settled(t, r)
				}
				l.write(t, 0, "4 4")
				l.settled(t, r)
			}
			answers()
		})
	}
}

// A topic that was deleted and created again is read from its beginning, into an empty epoch.
func TestSharedRecreatedTopic(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	l.write(t, 0, "1 1", "2 2")
	r, _ := l.shared(t, oneRedis.Config(t), online.Options{})
	l.settled(t, r)
	must(t, l.DeleteTopic(t.Context(), l.topic))
	polltest.Until(t, "the topic is created again", func() bool {
		return l.CreateTopic(t.Context(), l.topic, partitions) == nil
	})
	l.mu.Lock()
	l.facts = nil
	l.mu.Unlock()
	l.write(t, 0, "3 3")
	polltest.Until(t, "the vectors are those of the new topic", func() bool {
		if r.Ready() != nil {
			return false
		}
		_, err := l.lookup(t.Context(), r)
		return err == nil
	})
	l.settled(t, r)
}

// A store that is full is not ready, and says which setting to raise.
func TestSharedFullIsNotReady(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	l.write(t, 0, "1 1")
	r, _ := l.shared(t, oneRedis.Config(t), online.Options{MaxEntities: 3})
	l.settled(t, r)
	l.write(t, 1, "2 2")
	polltest.Until(t, "the runner is not ready", func() bool {
		err := r.Ready()
		return errors.Is(err, online.ErrFull) && strings.Contains(err.Error(), "features.online.max_entities")
	})
}

// A token is awaited by a process that did not apply its event.
func TestSharedToken(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	cfg := oneRedis.Config(t)
	l.write(t, 0, "1 1")
	l.write(t, 1, "1 1")
	one, _ := l.shared(t, cfg, online.Options{})
	two, _ := l.shared(t, cfg, online.Options{})
	l.settled(t, one)
	l.settled(t, two)
	for _, partition := range []int32{0, 1} {
		l.write(t, partition, "2 2")
		ends, err := l.Ends(t.Context(), l.topic)
		must(t, err)
		for _, r := range []*online.SharedRunner{one, two} {
			must(t, r.Watermarks().WaitFor(t.Context(), l.topic, map[int32]int64{partition: ends[partition]}))
			positions, err := l.lookup(t.Context(), r)
			must(t, err)
			if positions[partition] < ends[partition] {
				t.Errorf("the vectors are as of %v, want %v", positions, ends)
			}
		}
	}
}
