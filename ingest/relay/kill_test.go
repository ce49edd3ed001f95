package relay_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// childRole makes this binary the process that a kill test kills, instead of running tests.
const (
	childRole  = "MILLRACE_TEST_RELAY_ROLE" // "relay" or "everything"
	childStore = "MILLRACE_TEST_RELAY_STORE"
	childKafka = "MILLRACE_TEST_RELAY_KAFKA" // address of the broker, or the folder of the child's own broker
	childTopic = "MILLRACE_TEST_RELAY_TOPIC" // followed by a space and the service
)

// child runs a relay, and the broker if its role is everything, until it is killed.
func child(role string) error {
	ctx := context.Background()
	order := event.Order
	order.Topic, order.Service, _ = strings.Cut(os.Getenv(childTopic), " ")
	s, err := sqlite.Open(ctx, os.Getenv(childStore), order)
	if err != nil {
		return err
	}
	cfg := kafka.Config{Brokers: os.Getenv(childKafka), Logger: quiet}
	id := "relay-" + order.Service
	if role == "everything" {
		b, err := embedded.Start(ctx, embedded.Config{DataDir: os.Getenv(childKafka), Logger: quiet})
		if err != nil {
			return err
		}
		cfg.Brokers = b.Addr()
		id += "-" + b.Boot()
		if err := kafka.EnsureTopics(ctx, cfg, relay.Topics([]event.Aggregate{order}, partitions)...); err != nil {
			return err
		}
	}
	r, err := relay.New(relay.Config{
		Store: s, Aggregate: order, Kafka: cfg, TransactionalID: id, MaxEvents: 50, Logger: quiet,
	})
	if err != nil {
		return err
	}
	fmt.Println(cfg.Brokers)
	return errors.Join(r.Run(ctx), errors.New("the relay stopped"))
}

// start starts a child. It returns its broker's address and a function that kills it.
func (b broker) start(t *testing.T, role, store, kafkaAt string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(),
		childRole+"="+role, childStore+"="+store, childKafka+"="+kafkaAt, childTopic+"="+b.order.Topic+" "+b.order.Service)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child did not start: %v", err)
	}
	return strings.TrimSpace(line), kill
}

// load appends until stop is called. stop waits for the end and returns the number of events.
func load(t *testing.T, w *writer) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	n := 0
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			size := 1 + rand.N(20)
			if err := w.batch(context.WithoutCancel(ctx), size); err != nil {
				t.Error(err)
				return
			}
			n += size
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() int { cancel(); <-done; return n }
}

// killCount returns the number of kills of a test, and skips it in short mode.
func killCount(t *testing.T) int {
	if testing.Short() {
		t.Skip("kills processes for a while")
	}
	return 12
}

// awaitGrowth returns a function that blocks until the log has grown by n records since its last
// call, so that every kill hits a relay that is publishing.
func (b broker) awaitGrowth(t *testing.T) func(n int64) {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	size := func() (sum int64) {
		end, err := a.HighWatermarks(t.Context(), b.order.Topic)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range end {
			sum += o
		}
		return sum
	}
	return func(n int64) {
		from := size()
		eventually(t, func() bool { return size() >= from+n }, "the log grows by %d from %d", n, from)
	}
}

// A relay that is killed at random moments neither loses nor duplicates events.
func TestKillRelayUnderLoad(t *testing.T) {
	t.Parallel()
	n := killCount(t)
	each(t, func(t *testing.T, b broker) {
		path := filepath.Join(t.TempDir(), "order.db")
		s := b.openStore(t, path)
		stop := load(t, newWriter(s))
		grow := b.awaitGrowth(t)
		for range n {
			_, kill := b.start(t, "relay", path, b.Brokers)
			// More records than the markers that end the last transaction, and a random number.
			grow(2*partitions + rand.N[int64](300))
			kill()
		}
		total := stop()
		x := run(t, b.newRelay(t, s))
		x.await(t, s)
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		b.checkEqual(t, s)
		if last := x.relay.Progress().Published; int(last) == total {
			t.Fatal("the killed relays published no event")
		}
		t.Logf("%d events, the last relay published %d of them", total, x.relay.Progress().Published)
	})
}

// As TestKillRelayUnderLoad, but the embedded broker is killed with the relay, in the same process.
// TestKillLeaderUnderLoad kills real brokers.
func TestKillEverythingUnderLoad(t *testing.T) {
	t.Parallel()
	n := killCount(t)
	b := broker{kafka.Config{Logger: quiet}, event.Order}
	path, dir := filepath.Join(t.TempDir(), "order.db"), filepath.Join(t.TempDir(), "log")
	s := b.openStore(t, path)
	stop := load(t, newWriter(s))
	for range n {
		addr, kill := b.start(t, "everything", path, dir)
		b.Brokers = addr
		b.awaitGrowth(t)(2*partitions + rand.N[int64](300))
		kill()
	}
	total := stop()
	k, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	b.Brokers = k.Addr()
	x := run(t, b.newRelay(t, s, func(c *relay.Config) { c.TransactionalID += k.Boot() }))
	x.await(t, s)
	if err := x.stop(); err != nil {
		t.Fatal(err)
	}
	b.checkEqual(t, s)
	t.Logf("%d events, the last relay published %d of them", total, x.relay.Progress().Published)
}
