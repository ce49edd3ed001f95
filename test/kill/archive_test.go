package kill

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// TestReplayFromTheLake deletes what is on the log, and builds views again under load: first from the
// lake, then from the log. The process is killed on both sides of the change from one to the other.
// Versions that differ from the ones that were built before the deletion are not swapped in.
func TestReplayFromTheLake(t *testing.T) {
	process.DependOnSource(t, root)
	if !*full && !strings.Contains(runPattern(), "ReplayFromTheLake") {
		t.Skip("it takes minutes: run it with -run TestReplayFromTheLake")
	}
	s, err := startEmbedded(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(s.role("up").logTail())
		}
		if err := s.end(); err != nil {
			t.Error(err)
		}
	}()
	s.ledger.begin()
	traffic := startLoad(s.recorder.addr)
	if err := s.awaitCommands(t.Context(), 3000); err != nil {
		t.Fatal(err)
	}
	if err := traffic.end(); err != nil {
		t.Fatal(err)
	}
	if err := s.verify(t.Context()); err != nil { // so the lake has everything
		t.Fatal(err)
	}
	for _, a := range []event.Aggregate{event.Order, event.Product} {
		if err := kafka.DeleteRecords(t.Context(), s.brokers, a.Topic); err != nil {
			t.Fatal(err)
		}
	}
	traffic = startLoad(s.recorder.addr)
	defer traffic.end() //nolint:errcheck // a failure was reported before
	// The embedded broker forgets the first offset of a partition that is empty when it is killed.
	if err := s.awaitCommands(t.Context(), 2000); err != nil {
		t.Fatal(err)
	}
	for _, view := range replayedViews {
		for _, side := range []string{"before", "after"} {
			name := "from-lake-" + side
			next := view + "@" + name
			r := s.role("up")
			i, starts, err := r.now()
			if err == nil {
				err = i.arm(t.Context(), fmt.Sprintf("view.%s.archive.%s=kill@2", next, side))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := s.repeat(t.Context(), attemptTimeout, view, next+" serves",
				[]string{"replay", "--target", view, "--version", name},
				func(serving string, _ int) bool { return serving == next }); err != nil {
				t.Fatal(err)
			}
			if err := r.backSince(t.Context(), starts); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := traffic.end(); err != nil {
		t.Error(err)
	}
	if n, err := s.parked(t.Context(), ""); err != nil || n > 0 {
		t.Errorf("%d streams are parked: %v", n, err)
	}
}
