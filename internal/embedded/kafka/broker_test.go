package kafka_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// childDir makes this binary a broker in that directory instead of running tests, so that a test
// can kill it.
const childDir = "MILLRACE_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		b, err := embedded.Start(context.Background(), embedded.Config{DataDir: dir})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(b.Addr())
		select {}
	}
	goleak.VerifyTestMain(m)
}

var events = kafka.Topic{Name: "events", Partitions: 1}

type child struct {
	cmd  *exec.Cmd
	addr string
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child did not start: %v", err)
	}
	c.addr = strings.TrimSpace(line)
	return c
}

// kill sends kill -9 and waits for the end of the child.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func config(addr string) kafka.Config {
	return kafka.Config{
		Brokers: addr, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		// This is longer than any test waits, so a test that depends on the timeout of a
		// transaction fails.
		Extra: map[string]string{"transaction.timeout.ms": "600000"},
	}
}

func producer(t *testing.T, addr, id string) *kafka.TransactionalProducer {
	t.Helper()
	p, err := kafka.NewTransactionalProducer(config(addr), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// produce writes pairs of key and value to partition 0 in a new transaction, and returns when the
// broker has them.
func produce(t *testing.T, addr string, p *kafka.TransactionalProducer, topic string, keyValues ...string) {
	t.Helper()
	a := admin(t, addr)
	defer a.Close()
	before := high(t, a, topic)
	if err := p.Begin(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(keyValues); i += 2 {
		if err := p.Produce(t.Context(),
			kafka.Record{Topic: topic, Key: []byte(keyValues[i]), Value: []byte(keyValues[i+1])}); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); high(t, a, topic) < before+int64(len(keyValues)/2); {
		if time.Now().After(deadline) {
			t.Fatal("the broker does not have the records within 20 s")
		}
	}
}

func commit(t *testing.T, p *kafka.TransactionalProducer) {
	t.Helper()
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func admin(t *testing.T, addr string) *kafka.Admin {
	t.Helper()
	a, err := kafka.NewAdmin(config(addr))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func high(t *testing.T, a *kafka.Admin, topic string) int64 {
	t.Helper()
	offsets, err := a.HighWatermarks(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return offsets[0]
}

// readAll reads the committed records. It fails if an open transaction blocks it.
func readAll(t *testing.T, addr, topic string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a := admin(t, addr)
	defer a.Close()
	var got []string
	err := kafka.ReadAll(ctx, config(addr), topic, nil, map[int32]int64{0: high(t, a, topic)},
		func(m kafka.Message) error {
			got = append(got, string(m.Key)+"="+string(m.Value))
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// createTopic creates a topic if it does not exist.
func createTopic(t *testing.T, addr string, topic kafka.Topic) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), config(addr), topic); err != nil {
		t.Fatal(err)
	}
}

// A clean stop keeps every record, and each run has its own boot id.
func TestRestartKeepsLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boots := map[string]bool{}
	var want []string
	for i := range 3 {
		b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if boots[b.Boot()] {
			t.Fatalf("two starts have the boot id %s", b.Boot())
		}
		boots[b.Boot()] = true
		if left, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "snapshot.json")); err != nil ||
			len(left) > 0 {
			t.Fatalf("snapshots still exist after the start: %v, %v", left, err)
		}
		createTopic(t, b.Addr(), events)
		p := producer(t, b.Addr(), "relay-"+b.Boot())
		v := fmt.Sprint(i)
		produce(t, b.Addr(), p, "events", "k", v)
		commit(t, p)
		p.Close()
		want = append(want, "k="+v)
		if got := readAll(t, b.Addr(), "events"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("after start %d: %v, want %v", i+1, got, want)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A second broker on the same directory fails until the first is closed.
func TestDirectoryHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir}); !errors.Is(err, embedded.ErrInUse) {
		t.Fatalf("a second broker on the directory: %v, want ErrInUse", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// Other addresses than loopback are refused, because the broker has no authentication.
func TestListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	if b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Addr: "0.0.0.0:0"}); err == nil {
		_ = b.Close()
		t.Fatal("the broker listens on all interfaces")
	}
}

// After a kill, all committed records are readable, also behind a transaction that was open. That
// transaction counts as aborted.
func TestKillKeepsCommittedRecordsOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []string
	for i := range 4 {
		c := startChild(t, dir)
		createTopic(t, c.addr, events)
		v := fmt.Sprint(i)
		done := producer(t, c.addr, fmt.Sprintf("done-%d", i))
		produce(t, c.addr, done, "events", "done", v)
		commit(t, done)
		want = append(want, "done="+v)
		open := producer(t, c.addr, fmt.Sprintf("open-%d", i))
		produce(t, c.addr, open, "events", "open", v)
		produceAfter := producer(t, c.addr, fmt.Sprintf("after-%d", i))
		produce(t, c.addr, produceAfter, "events", "after", v)
		commit(t, produceAfter)
		want = append(want, "after="+v)
		c.kill()
		c = startChild(t, dir)
		if got := readAll(t, c.addr, "events"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("after kill %d: %v, want %v", i+1, got, want)
		}
		c.kill()
	}
}

// files returns the files that match, at least one. The first element is a folder without pattern.
func files(t *testing.T, pattern ...string) []string {
	t.Helper()
	root := os.DirFS(pattern[0])
	names, err := fs.Glob(root, path.Join(pattern[1:]...))
	if err != nil || len(names) == 0 {
		t.Fatalf("no file %v, %v", pattern, err)
	}
	for i, name := range names {
		names[i] = filepath.Join(pattern[0], name)
	}
	return names
}

// shorten truncates a file.
func shorten(t *testing.T, name string, by int64) {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, info.Size()-by); err != nil {
		t.Fatal(err)
	}
}

// A kill between a batch and its line in the index, or within either, must not make uncommitted
// records visible, nor affect later ones.
func TestKillDuringWrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		index, segment int64 // bytes that were not written
	}{
		"before the line": {index: 15},
		"in the line":     {index: 6},
		"in the batch":    {index: 15, segment: 9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "a[b]*") // a path is a path, not a pattern
			var want []string
			for i := range 3 {
				c0 := startChild(t, dir)
				createTopic(t, c0.addr, events)
				v := fmt.Sprint(i)
				done := producer(t, c0.addr, "done-"+v)
				produce(t, c0.addr, done, "events", "done", v)
				commit(t, done)
				want = append(want, "done="+v)
				produce(t, c0.addr, producer(t, c0.addr, "open-"+v), "events", "open", v)
				c0.kill()
				shorten(t, files(t, dir, "partitions", "events-0", "*.idx")[0], c.index)
				shorten(t, files(t, dir, "partitions", "events-0", "*.dat")[0], c.segment)
				c0 = startChild(t, dir)
				if got := readAll(t, c0.addr, "events"); strings.Join(got, " ") != strings.Join(want, " ") {
					t.Fatalf("after kill %d: %v, want %v", i+1, got, want)
				}
				c0.kill()
			}
		})
	}
}

func TestCloseWithOpenTransactionUnblocksReaders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := start(t, dir)
	createTopic(t, b.Addr(), events)
	produce(t, b.Addr(), producer(t, b.Addr(), "open"), "events", "open", "1")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = start(t, dir)
	p := producer(t, b.Addr(), "done")
	produce(t, b.Addr(), p, "events", "done", "1")
	commit(t, p)
	if got := readAll(t, b.Addr(), "events"); strings.Join(got, " ") != "done=1" {
		t.Fatalf("%v, want done=1", got)
	}
}

// A start compacts the log. If it is killed meanwhile, the next start loses nothing and compacts
// again.
func TestCompactsAtStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := start(t, dir)
	createTopic(t, b.Addr(), kafka.Topic{Name: "positions", Partitions: 1, Compacted: true})
	p := producer(t, b.Addr(), "p")
	for i := range 20 {
		produce(t, b.Addr(), p, "positions", "order", fmt.Sprint(i), "stock", fmt.Sprint(-i))
		commit(t, p)
	}
	produce(t, b.Addr(), p, "positions", "order", "never")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	const want = "order=19 stock=-19"
	b = start(t, dir)
	if got := readAll(t, b.Addr(), "positions"); strings.Join(got, " ") != want {
		t.Fatalf("after compaction: %v, want %s", got, want)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// Simulate a kill during the next compaction: the old segments are removed, and the new ones
	// are not written.
	partition, saved := filepath.Join(dir, "partitions", "positions-0"), filepath.Join(dir, "compacting", "positions-0")
	if err := os.MkdirAll(saved, 0o750); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"*.dat", "*.idx"} {
		for _, name := range files(t, partition, pattern) {
			if err := os.Rename(name, filepath.Join(saved, filepath.Base(name))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(partition, "7.dat"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	b = start(t, dir)
	if got := readAll(t, b.Addr(), "positions"); strings.Join(got, " ") != want {
		t.Fatalf("after a kill within compaction: %v, want %s", got, want)
	}
	p = producer(t, b.Addr(), "q")
	produce(t, b.Addr(), p, "positions", "order", "20")
	commit(t, p)
	if got := readAll(t, b.Addr(), "positions"); strings.Join(got, " ") != want+" order=20" {
		t.Fatalf("after another record: %v", got)
	}
	for _, leftover := range []string{"compacting", "compacting.new", "compacting.old"} {
		if _, err := os.Stat(filepath.Join(dir, leftover)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s still exists: %v", leftover, err)
		}
	}
}

func start(t *testing.T, dir string) *embedded.Broker {
	t.Helper()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
