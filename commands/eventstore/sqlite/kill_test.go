package sqlite_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
)

// victimPath is the environment variable that makes the test binary a victim of TestKill.
const victimPath = "MILLRACE_TEST_VICTIM"

const victimWriters = 8

// victim appends until it is killed, and prints each acknowledged append.
func victim(path string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, path, eventstoretest.Aggregate)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for i := range victimWriters {
		g.Go(func() error {
			stream := fmt.Sprint("stream ", i)
			present, err := s.Load(ctx, stream, 0)
			if err != nil {
				return err
			}
			for version := uint64(len(present)); ; version += 2 {
				now := event.Time(time.Now())
				e := event.Event{ID: uuid.Must(uuid.NewV7()), Type: "t", OccurredAt: now, RecordedAt: now}
				done, err := s.Append(ctx, eventstore.Batch{
					Streams: []eventstore.StreamAppend{{Stream: stream, ExpectedVersion: version, Events: []event.Event{e, e}}},
					Answer:  eventstore.Answer{Key: fmt.Sprintf("%d-%d", i, version+2)},
				})
				if err != nil {
					return err
				}
				fmt.Printf("%d %d %d\n", i, version+2, done.Position.Sequence)
			}
		})
	}
	return g.Wait()
}

// TestKill kills a process that appends, repeatedly and at random moments. Every acknowledged
// append must be there, and each batch complete.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	answered := map[int]uint64{}
	for round := range 5 {
		cmd := exec.CommandContext(context.Background(), os.Args[0])
		cmd.Env = append(os.Environ(), victimPath+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for in := bufio.NewScanner(out); in.Scan(); lines++ {
			if lines == 150+37*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			var writer int
			var version, position uint64
			if _, err := fmt.Sscanf(in.Text(), "%d %d %d", &writer, &version, &position); err != nil {
				t.Fatalf("the victim printed %q: %v", in.Text(), err)
			}
			answered[writer] = version
		}
		if err := cmd.Wait(); !errors.As(err, new(*exec.ExitError)) || lines < 150 {
			t.Fatalf("the victim ended after %d acknowledgements with %v", lines, err)
		}
		checkVictim(t, path, answered)
	}
}

// checkVictim checks that the file has at least the acknowledged appends, in complete batches.
func checkVictim(t *testing.T, path string, answered map[int]uint64) {
	t.Helper()
	s := open(t, path)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	total := 0
	for i := range victimWriters {
		events, err := s.Load(t.Context(), fmt.Sprint("stream ", i), 0)
		if err != nil {
			t.Fatal(err)
		}
		version := uint64(len(events))
		if version < answered[i] || version%2 != 0 {
			t.Errorf("writer %d: version %d was acknowledged, %d events are stored", i, answered[i], version)
		}
		if version == 0 {
			continue
		}
		total += len(events)
		last := events[version-1]
		a, ok, err := s.LoadAnswer(t.Context(), fmt.Sprintf("%d-%d", i, version))
		if err != nil || !ok || a.Position != last.Position || last.Version != version {
			t.Errorf("writer %d: the answer to version %d is %+v %v (%v); its event has position %v",
				i, version, a, ok, err, last.Position)
		}
	}
	all, err := s.Read(t.Context(), event.Position{}, 1<<30)
	if err != nil || len(all) != total {
		t.Errorf("Read returned %d events (%v), the streams have %d", len(all), err, total)
	}
}
