package online_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	"github.com/millrace/millrace/test/servers/process"
)

// All tests share the broker. Each has its own topic.
var broker kafka.Config

// envVictim makes this binary a process that feeds a store until it is killed: its value is the
// brokers, the topic and the folder of the snapshot.
const envVictim = "MILLRACE_TEST_ONLINE_VICTIM"

func TestMain(m *testing.M) {
	if args := os.Getenv(envVictim); args != "" {
		part := strings.Split(args, " ")
		store, err := online.New([]*features.Group{spending(part[1])}, online.Options{})
		if err == nil {
			err = online.NewRunner(store, config(part[0], part[2])).Run(context.Background())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if args := os.Getenv(envSharedVictim); args != "" {
		fmt.Fprintln(os.Stderr, sharedVictim(args))
		os.Exit(1)
	}
	cfg, stop, err := streamstest.StartBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	broker = cfg
	os.Exit(process.RunTests(m, stop, oneRedis.Stop, cluster.Stop))
}

// spending is a group of a topic whose events are "key amount", or "key" to retract.
func spending(topic string) *features.Group {
	return &features.Group{
		Name: "spending", Version: 1, Entity: "customer_id", Description: "d", Owner: "o",
		Sources: []features.Source{{Name: "payments", Topic: topic,
			Columns: []features.Column{{Name: "amount", Kind: exact.Number}},
			Project: func(e event.Event) ([]features.Fact, error) {
				key, amount, holds := strings.Cut(string(e.Data), " ")
				n, err := strconv.ParseInt(amount, 10, 64)
				if holds && err != nil {
					return nil, err
				}
				k, err := strconv.Atoi(key)
				if err != nil {
					return nil, err
				}
				return []features.Fact{{Entity: e.Stream, Key: key, At: start.Add(time.Duration(k) * time.Minute),
					Retracted: !holds, Values: []exact.Value{exact.IntValue(exact.FromInt64(n))}}}, nil
			},
		}},
		Features: []features.Feature{
			{Name: "spent", Source: "payments", Aggregate: exact.Sum, Column: "amount",
				Windows: []features.Window{features.Hour, features.Lifetime}},
			{Name: "payments", Source: "payments", Aggregate: exact.Count, Windows: []features.Window{features.Lifetime}},
		},
	}
}

func config(brokers, dir string) online.Config {
	return online.Config{Brokers: strings.Split(brokers, ","), Dir: dir, SaveEvery: 20 * time.Millisecond,
		WriteDeadLetters: func(context.Context, ...streams.DeadLetter) error { return errors.New("unexpected dead letters") },
		Logger:           streamstest.Quiet}
}

// topicLog is the topic of a test, and the facts on it.
type topicLog struct {
	*fetchtest.Producer
	topic string
	group *features.Group
	facts []features.Fact
	next  uint64
}

const partitions = 2

func newLog(t *testing.T) *topicLog {
	t.Helper()
	l := &topicLog{topic: "t-" + uuid.NewString()}
	l.Producer = fetchtest.New(t, strings.Split(broker.Brokers, ","), l.topic)
	l.group = spending(l.topic)
	must(t, l.CreateTopic(t.Context(), l.topic, partitions))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write appends events of one customer to a partition.
func (l *topicLog) write(t *testing.T, partition int32, texts ...string) {
	t.Helper()
	var records []fetchtest.Record
	for _, text := range texts {
		l.next++
		e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "test", Stream: fmt.Sprintf("c%d", partition),
			Version: l.next, Type: "test.Event", Data: []byte(text), OccurredAt: start, RecordedAt: start,
			Position: event.Position{Sequence: l.next}}
		records = append(records, fetchtest.Event(partition, e))
		facts, err := l.group.Sources[0].Project(e)
		must(t, err)
		facts[0].Origin.Offset = int64(l.next)
		l.facts = append(l.facts, facts...)
	}
	must(t, l.Commit(t.Context(), l.topic, records...))
}

// run runs a new store from the snapshot in a folder until the test ends or stop is called.
func (l *topicLog) run(t *testing.T, dir string, o online.Options) (r *online.Runner, stop func()) {
	t.Helper()
	store, err := online.New([]*features.Group{l.group}, o)
	must(t, err)
	r = online.NewRunner(store, config(broker.Brokers, dir))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must(t, <-done)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

// check waits until a runner is ready, and compares its vectors with Evaluate.
func (l *topicLog) check(t *testing.T, r *online.Runner) {
	t.Helper()
	polltest.Until(t, "the online features are ready", func() bool { return r.Ready() == nil })
	must(t, r.Watermarks().Wait(t.Context(), l.topic, "c0", event.Position{Sequence: 0}))
	q, err := r.Store().Compile("spending")
	must(t, err)
	at := start.Add(100 * time.Minute)
	vectors, err := r.Store().Lookup(t.Context(), q, []string{"c0", "c1"}, at, nil)
	must(t, err)
	for _, v := range vectors {
		want := features.Evaluate(l.group, map[string][]features.Fact{"payments": l.facts}, v.Entity, at, time.Time{})
		for i, o := range q.Outputs {
			if !v.Values[i].Equal(want.Values[i]) {
				t.Fatalf("%s of %s is %+v, want %+v", o.Name, v.Entity, v.Values[i], want.Values[i])
			}
		}
	}
}

// A runner that is killed at any moment continues from its snapshot, and loses and doubles nothing.
func TestKilledRunner(t *testing.T) {
	l, dir := newLog(t), t.TempDir()
	exe, err := os.Executable()
	must(t, err)
	for round := range 5 {
		l.write(t, 0, fmt.Sprintf("%d %d", round, round+1), fmt.Sprintf("%d 50", round+10))
		victim := exec.CommandContext(t.Context(), exe)
		victim.Env = append(os.Environ(), envVictim+"="+strings.Join([]string{broker.Brokers, l.topic, dir}, " "))
		var log bytes.Buffer
		victim.Stderr = &log
		must(t, victim.Start())
		l.write(t, 1, fmt.Sprintf("%d 7", round))
		if round > 0 {
			l.write(t, 0, strconv.Itoa(round-1), fmt.Sprintf("%d 9", round+9)) // a retraction and a correction
		}
		before, _ := os.ReadFile(dir + "/online.snapshot")
		polltest.Until(t, "another snapshot", func() bool {
			b, _ := os.ReadFile(dir + "/online.snapshot")
			// In every other round, one that has new facts.
			return len(b) > 0 && !bytes.Equal(b, before) && (round%2 == 0 || len(b) > len(before))
		})
		must(t, victim.Process.Kill())
		_ = victim.Wait()
		if log.Len() > 0 {
			t.Fatalf("the process ended by itself: %s", log.String())
		}
	}
	r, _ := l.run(t, dir, online.Options{})
	l.check(t, r)
}

// A topic that was deleted and created again is read from its beginning, into an empty store.
func TestRecreatedTopic(t *testing.T) {
	l, dir := newLog(t), t.TempDir()
	l.write(t, 0, "1 1", "2 2")
	r, stop := l.run(t, dir, online.Options{})
	l.check(t, r)
	stop()
	must(t, l.DeleteTopic(t.Context(), l.topic))
	polltest.Until(t, "the topic is created again", func() bool {
		return l.CreateTopic(t.Context(), l.topic, partitions) == nil
	})
	l.facts = nil
	l.write(t, 0, "3 3")
	r, _ = l.run(t, dir, online.Options{})
	l.check(t, r)
}

// A store that is full is not ready, and says which setting to raise.
func TestFullStoreIsNotReady(t *testing.T) {
	l := newLog(t)
	l.write(t, 0, "1 1")
	r, _ := l.run(t, t.TempDir(), online.Options{MaxEntities: 1})
	l.check(t, r)
	l.write(t, 1, "2 2")
	polltest.Until(t, "the runner is not ready", func() bool {
		err := r.Ready()
		return errors.Is(err, online.ErrFull) && strings.Contains(err.Error(), "features.online.max_entities")
	})
}
