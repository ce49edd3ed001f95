package streams

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault is a damaged piece of what a sink holds. The sink is being rebuilt from the log.
type Fault struct {
	Piece  string // "documents", "positions", "journal"
	Reason string
	Since  time.Time
}

// Faults holds the faults of one sink from their discovery until the log has been read again. It is
// safe for concurrent use.
type Faults struct {
	mu  sync.Mutex
	all map[string]*fault // by piece
}

type fault struct {
	Fault
	last time.Time // when it was reported last
}

// Report adds a fault. Only the first report of a piece is logged and kept until the piece is
// rebuilt.
func (f *Faults) Report(log *slog.Logger, sink, piece, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if known := f.all[piece]; known != nil {
		known.last = now
		return
	}
	if f.all == nil {
		f.all = map[string]*fault{}
	}
	f.all[piece] = &fault{Fault{Piece: piece, Reason: reason, Since: now}, now}
	log.Error("streams: a part of the sink is damaged or lost; rebuilding it from the log", "sink", sink, "part", piece, "reason", reason)
}

// List returns the faults, ordered by piece.
func (f *Faults) List() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Fault, 0, len(f.all))
	for _, known := range f.all {
		list = append(list, known.Fault)
	}
	slices.SortFunc(list, func(a, b Fault) int { return strings.Compare(a.Piece, b.Piece) })
	return list
}

// Any reports whether there is a fault.
func (f *Faults) Any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all) > 0
}

// rebuilt removes the faults that were last reported before a time.
func (f *Faults) rebuilt(log *slog.Logger, sink string, before time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for piece, known := range f.all {
		if known.last.Before(before) {
			delete(f.all, piece)
			log.Info("streams: a damaged part of the sink is rebuilt", "sink", sink, "part", piece, "after", time.Since(known.Since))
		}
	}
}

// clearFaults removes faults after a look that began at a time and found nothing lost, if everything on
// the topics has been applied. A sink removes what is damaged before it reports it, so such a look
// comes after the log has been read again.
func (w *Watermarks) clearFaults(log *slog.Logger, sink string, topics []string, begun time.Time) {
	if w.faults.Any() {
		if lag, known := w.Lag(topics...); known && lag == 0 {
			w.faults.rebuilt(log, sink, begun)
		}
	}
}

// Faults returns the faults of the sink.
func (w *Watermarks) Faults() *Faults { return &w.faults }

// Inspector is a Sink that can look for damage in what it holds.
type Inspector interface {
	// Inspect reads everything that the sink holds. It reports damage in Faults, and removes what
	// is damaged so that the Runtime notices the loss.
	Inspect(ctx context.Context) error
}

// inspect runs the sink's inspections until ctx ends.
func (r *Runtime) inspect(ctx context.Context) {
	sink, ok := r.cfg.Sink.(Inspector)
	if !ok {
		return
	}
	tick := time.NewTicker(r.cfg.InspectEvery)
	defer tick.Stop()
	for {
		within, cancel := context.WithTimeout(ctx, inspectTimeout)
		err := sink.Inspect(within)
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrLost) {
			r.cfg.Logger.Warn("streams: the sink could not be inspected for damage; retrying later", "sink", r.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

const (
	inspectEvery   = 5 * time.Minute
	inspectTimeout = 10 * time.Minute
)
