package online_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
)

// expired are the events of a partition that the log does not have any more. All processes of a test know
// them.
func expired(partition int32) (texts []string) {
	for i := range 40 {
		texts = append(texts, fmt.Sprintf("%d %d", i, i+int(partition)))
	}
	return append(texts, "3", "4 100", "5")
}

// archive is a Past of expired events. It implements online.Past as the tables in ClickHouse do.
type archive struct {
	group *features.Group
	topic fetch.Topic
	// pause is called before the facts of a part.
	pause func(part int)
}

// newArchive returns the expired events of a group's topic.
func newArchive(ctx context.Context, brokers string, g *features.Group) (*archive, error) {
	c := config(brokers, "")
	r, err := fetch.Open(fetch.Config{Brokers: c.Brokers, Topic: g.Sources[0].Topic, Logger: c.Logger, ClientID: "test"})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	topic, err := r.Describe(ctx)
	return &archive{g, topic, func(int) {}}, err
}

// pauseAt makes a process say when it comes to a part, and wait until it gets SIGCONT.
func (a *archive) pauseAt(part string) {
	goOn := make(chan os.Signal, 1)
	signal.Notify(goOn, syscall.SIGCONT)
	a.pause = func(at int) {
		if strconv.Itoa(at) != part {
			return
		}
		fmt.Println("paused")
		<-goOn
	}
}

func (a *archive) Complete(context.Context, string) (string, map[int32]feed.Position, error) {
	upto := map[int32]feed.Position{}
	for p := range int32(partitions) {
		upto[p] = feed.Position{Next: int64(len(expired(p)))}
	}
	return a.topic.ID, upto, nil
}

func (a *archive) Filling(string) bool { return false }

func (a *archive) Facts(_ context.Context, source string, part, parts int, each func(features.Fact) error) error {
	a.pause(part)
	for p := range int32(partitions) {
		for i, text := range expired(p) {
			facts, err := a.group.Sources[0].Project(event.Event{Stream: fmt.Sprint("c", p), Data: []byte(text),
				OccurredAt: start, RecordedAt: start})
			if err != nil {
				return err
			}
			for j, f := range facts {
				f.Origin = features.Origin{Partition: p, Offset: int64(i), Index: int32(j)}
				if source != "payments" || int(xxhash.Sum64String(f.Entity)%uint64(parts)) != part {
					continue
				}
				if err := each(f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// expire writes the expired events, and deletes them from the log.
func (l *sharedLog) expire(t *testing.T) {
	t.Helper()
	for p := range int32(partitions) {
		l.write(t, p, expired(p)...)
		must(t, l.DeleteRecords(t.Context(), l.topic, p, int64(len(expired(p)))))
	}
}

// restoring starts a process that restores the facts in Redis, and returns once it has paused before the
// facts of a part.
func restoring(t *testing.T, l *sharedLog, cfg redis.Config, part int) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	c := exec.CommandContext(t.Context(), exe)
	c.Env = append(os.Environ(), envSharedVictim+"="+strings.Join([]string{broker.Brokers, l.topic, cfg.Addr,
		fmt.Sprint(part)}, " "))
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "paused\n" {
		t.Fatalf("the process says %q: %v", line, err)
	}
	return c
}

// sharedWithPast is shared with the expired events, by a clock that says that no other process has the
// right to restore any more.
func (l *sharedLog) sharedWithPast(t *testing.T, cfg redis.Config) *online.SharedRunner {
	t.Helper()
	past, err := newArchive(t.Context(), broker.Brokers, l.group)
	must(t, err)
	r, _ := l.sharedBy(t, cfg, online.Options{Now: func() time.Time { return time.Now().Add(time.Hour) }}, past)
	return r
}

// epochs returns the epochs of the definitions of a log that have keys.
func (l *sharedLog) epochs(t *testing.T) []string {
	t.Helper()
	name := "millrace:" + online.SharedName([]*features.Group{l.group}) + ":"
	keys, err := oneRedis.Do(t.Context(), 0, "KEYS", name+"*")
	must(t, err)
	epochs := map[string]bool{}
	for key := range strings.FieldsSeq(keys) {
		if epoch, _, _ := strings.Cut(strings.TrimPrefix(key, name), ":"); epoch != "current" {
			epochs[epoch] = true
		}
	}
	return slices.Collect(maps.Keys(epochs))
}

// A process that restores what the log does not have is killed, or suspended and continues after another
// one has restored it. While nothing is restored, nothing is answered; in the end, nothing is missing or
// doubled, and nothing is left of the first process.
func TestSharedRestoreIsInterrupted(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		for name, part := range map[string]int{"at first": 0, "in the middle": 40, "at the end": 63} {
			t.Run(fmt.Sprintf("%s %s", signal, name), func(t *testing.T) {
				t.Parallel()
				l := newSharedLog(t)
				cfg := oneRedis.Config(t)
				l.expire(t)
				l.write(t, 0, "7 7", "8") // corrections of what has expired
				first := restoring(t, l, cfg, part)
				must(t, first.Process.Signal(signal))
				r := l.sharedWithPast(t, cfg)
				l.settled(t, r)
				answers := l.watch(t, r)
				must(t, first.Process.Signal(syscall.SIGCONT))
				for n := range 10 {
					l.write(t, int32(n%partitions), fmt.Sprintf("%d %d", n, n+50), fmt.Sprint(n+1))
				}
				l.settled(t, r)
				answers()
				polltest.Until(t, "only one epoch is left", func() bool { return len(l.epochs(t)) == 1 })
			})
		}
	}
}

// Without a Past, the facts begin with the log. A partition whose records have all expired does not keep
// the runner from being ready, and neither does a topic that is empty.
func TestSharedWithoutThePast(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	l.expire(t)
	l.mu.Lock()
	l.facts = nil
	l.mu.Unlock()
	r, _ := l.shared(t, oneRedis.Config(t), online.Options{})
	l.settled(t, r)
	l.write(t, 1, "1 1")
	l.settled(t, r)
}

// A store that the Past alone fills is not ready, and says which setting to raise.
func TestSharedRestoreOfTooMany(t *testing.T) {
	t.Parallel()
	l := newSharedLog(t)
	l.expire(t)
	past, err := newArchive(t.Context(), broker.Brokers, l.group)
	must(t, err)
	r, _ := l.sharedBy(t, oneRedis.Config(t), online.Options{MaxEntities: 2}, past)
	polltest.Until(t, "the runner is not ready", func() bool {
		err := r.Ready()
		return errors.Is(err, online.ErrFull) && strings.Contains(err.Error(), "features.online.max_entities")
	})
}

// Facts of definitions that no process has used for a week are deleted, also what a process has left in the
// middle of restoring them. Those that are used stay, and a process that comes back restores its own.
func TestUnusedDefinitionsAreDeleted(t *testing.T) {
	t.Parallel()
	old, now := newSharedLog(t), newSharedLog(t)
	cfg := embeddedRedis(t)
	for _, l := range []*sharedLog{old, now} {
		l.write(t, 0, "1 1", "2 2")
		l.write(t, 1, "1 5")
	}
	r, _ := now.shared(t, cfg, online.Options{})
	now.settled(t, r)
	first, stop := old.shared(t, cfg, online.Options{})
	old.settled(t, first)
	deleteUnused := func(after time.Duration) {
		t.Helper()
		at := func() time.Time { return time.Now().Add(after) }
		s, err := online.NewShared(openRedis(t, cfg), []*features.Group{now.group}, online.Options{Now: at})
		must(t, err)
		must(t, s.DeleteUnused(t.Context(), config(broker.Brokers, "").Logger))
	}
	size := func() int {
		t.Helper()
		s, err := online.NewShared(openRedis(t, cfg), []*features.Group{old.group}, online.Options{})
		must(t, err)
		epoch, err := s.Facts().Epoch(t.Context())
		if errors.Is(err, redis.ErrLost) {
			return 0
		}
		must(t, err)
		shards, err := s.Facts().Shards(t.Context(), epoch)
		must(t, err)
		return len(shards)
	}
	deleteUnused(6 * 24 * time.Hour)
	if size() == 0 {
		t.Fatal("facts that were used are gone")
	}
	// The process is still there, but seems to be gone: it restores its facts, and answers nothing meanwhile.
	answers := old.watch(t, first)
	deleteUnused(8 * 24 * time.Hour)
	old.settled(t, first)
	answers()
	stop()
	deleteUnused(16 * 24 * time.Hour)
	if size() != 0 {
		t.Error("facts that are not used are still there")
	}
	now.settled(t, r)
	again, _ := old.shared(t, cfg, online.Options{})
	old.settled(t, again)
}
