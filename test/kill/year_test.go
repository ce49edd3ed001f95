package kill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/test/servers/process"
)

// killsOfAReplay is how often the process is killed while it builds one view again.
const killsOfAReplay = 10

// TestReplayOfTheYear builds each view again from the real year, while orders are placed and read, and
// kills the process again and again. No read fails or is older than its token, and every side is equal
// at the end.
func TestReplayOfTheYear(t *testing.T) {
	process.DependOnSource(t, root)
	if !*full && !strings.Contains(runPattern(), "ReplayOfTheYear") {
		t.Skip("it takes many minutes: run it with -run TestReplayOfTheYear")
	}
	if _, err := os.Stat(*year); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("the real year does not exist: set -kill.year: %v", err)
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
	begun := time.Now()
	if err := s.importWholeYear(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("the year was imported in %v", time.Since(begun).Round(time.Second))
	s.ledger.begin()
	traffic := startLoad(s.recorder.addr)
	if err := s.awaitCommands(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	readers := s.startReaders(t.Context())
	for _, view := range replayedViews {
		begun := time.Now()
		if err = s.replayWithKills(t.Context(), view); err != nil {
			err = fmt.Errorf("%s: %w", view, err)
			break
		}
		t.Logf("%s was replaced in %v, with %d kills", view, time.Since(begun).Round(time.Second), killsOfAReplay)
	}
	reads, readErr := readers.end()
	err = errors.Join(err, readErr, traffic.end(), s.failed())
	if err == nil {
		err = s.verify(t.Context())
	}
	found, auditErr := s.audit(t.Context())
	if err := errors.Join(err, auditErr, found.err()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d reads, %d acknowledged commands", reads, found.acknowledged)
}

// replayedViews are the views that are built again.
var replayedViews = []string{"orderstatus/v2", "catalog/v2"}

// importWholeYear imports the real year.
func (s *system) importWholeYear(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, binary, "import", "online-retail", *year, "--addr", s.recorder.addr,
		"--rejects", filepath.Join(s.dir, "rejects.csv"), "--output", "json")
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import the real year: %w: %s", err, tail(string(out)))
	}
	return nil
}

// replayWithKills builds a view again and swaps the new version in. The process kills itself again and
// again while it fills the version.
func (s *system) replayWithKills(ctx context.Context, view string) error {
	r, next := s.role("up"), view+"@year"
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var filling sync.WaitGroup
	defer filling.Wait()
	// Slowly, so that it is killed before it is complete.
	killed := make(chan struct{})
	filling.Go(func() {
		for {
			_ = s.attempt(ctx, attemptTimeout, "replay", "--target", view, "--version", "year", "--rate", "10000/s", "--no-swap")
			select {
			case <-killed:
				return
			case <-ctx.Done():
				return
			case <-time.After(time.Second): // the process is being started
			}
		}
	})
	for range killsOfAReplay {
		i, starts, err := r.now()
		if err != nil {
			return err
		}
		if err := i.arm(ctx, fmt.Sprintf("view.%s.apply.before=kill@%d", next, 2+rand.IntN(30))); err != nil {
			return err
		}
		if err := r.backSince(ctx, starts); err != nil {
			return err
		}
	}
	close(killed)
	// Tens of thousands of documents are compared under load.
	return s.repeat(ctx, settleTimeout, view, next+" serves", []string{"replay", "--target", view, "--version", "year"},
		func(serving string, _ int) bool { return serving == next })
}

// readers ask for orders by the tokens of their receipts until they are stopped.
type readers struct {
	stop  context.CancelFunc
	group errgroup.Group
	reads atomic.Int64
}

func (s *system) startReaders(ctx context.Context) *readers {
	ctx, stop := context.WithCancel(ctx)
	r := &readers{stop: stop}
	for range 4 {
		r.group.Go(func() error {
			for ctx.Err() == nil {
				if err := s.readRecent(ctx, r); err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		})
	}
	return r
}

// end stops the readers, and returns how often they have read.
func (r *readers) end() (int64, error) {
	r.stop()
	err := r.group.Wait()
	return r.reads.Load(), err
}

// readRecent reads an order that was changed recently. It tries again while the process is started.
func (s *system) readRecent(ctx context.Context, r *readers) error {
	e, ok := s.ledger.recent()
	if !ok {
		return errors.New("no order was acknowledged")
	}
	for deadline := time.Now().Add(recoveryTimeout); ; {
		i, _, err := s.role("query").now()
		if err != nil {
			return err
		}
		res, err := orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+i.addr).GetOrder(ctx,
			connect.NewRequest(&orderv1.GetOrderRequest{
				Key: &orderv1.GetOrderRequest_OrderId{OrderId: e.token.Stream}, Token: e.opaque,
			}))
		code := connect.CodeOf(err)
		// A connection that was cut off is reported as a call that was cancelled.
		unreachable := code == connect.CodeUnavailable || code == connect.CodeDeadlineExceeded || code == connect.CodeCanceled
		switch {
		case err == nil && res.Msg.GetOrder().GetVersion() < e.token.Version:
			return fmt.Errorf("order %s: version %d was read with the token of version %d",
				e.token.Stream, res.Msg.GetOrder().GetVersion(), e.token.Version)
		case err == nil:
			r.reads.Add(1)
			return nil
		case !unreachable || time.Now().After(deadline):
			return fmt.Errorf("order %s: %w", e.token.Stream, err)
		}
		if err := sleep(ctx, watchEvery); err != nil {
			return err
		}
	}
}
