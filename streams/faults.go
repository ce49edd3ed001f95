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

// Fault is a damaged part of a sink's data. While it is listed, the sink is being rebuilt from the
// log.
type Fault struct {
	Part   string // for example "documents", "positions", "journal"
	Reason string
	Since  time.Time
}

// Faults holds the faults of one sink, from their discovery until the log has been read again. It
// is safe for concurrent use.
type Faults struct {
	mu  sync.Mutex
	all map[string]*fault // by part
}

// fault adds the time of the last report, which decides when the part is rebuilt.
type fault struct {
	Fault
	last time.Time // when it was last reported
}

// Report adds a fault. Only the first report of a part is logged and kept. Later ones delay the
// moment when the part counts as rebuilt.
func (f *Faults) Report(log *slog.Logger, sink, part, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if known := f.all[part]; known != nil {
		known.last = now
		return
	}
	if f.all == nil {
		f.all = map[string]*fault{}
	}
	f.all[part] = &fault{Fault{Part: part, Reason: reason, Since: now}, now}
	log.Error("streams: sink data damaged or lost; rebuilding it from the log",
		"sink", sink, "part", part, "reason", reason)
}

// List returns the faults, ordered by part.
func (f *Faults) List() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Fault, 0, len(f.all))
	for _, known := range f.all {
		list = append(list, known.Fault)
	}
	slices.SortFunc(list, func(a, b Fault) int { return strings.Compare(a.Part, b.Part) })
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
	for part, known := range f.all {
		if known.last.Before(before) {
			delete(f.all, part)
			log.Info("streams: damaged sink data rebuilt",
				"sink", sink, "part", part, "after", time.Since(known.Since))
		}
	}
}

// clearFaults removes faults after an inspection of positions that began at begun and found nothing
// lost, if everything on the topics has been applied. A sink deletes damaged data before it reports
// it. So without a loss and without lag, the log has been read again since the report.
func (w *Watermarks) clearFaults(log *slog.Logger, sink string, topics []string, begun time.Time) {
	if w.faults.Any() {
		if lag, known := w.Lag(topics...); known && lag == 0 {
			w.faults.rebuilt(log, sink, begun)
		}
	}
}

// Faults returns the faults of the sink.
func (w *Watermarks) Faults() *Faults { return &w.faults }

// Inspector is a Sink that can check its data for damage.
type Inspector interface {
	// Inspect reads all data of the sink. It reports damage to Faults, and deletes what is damaged
	// so that the Runtime notices the loss.
	Inspect(ctx context.Context) error
}

// inspect inspects the sink at start and then every InspectEvery, until ctx ends. It returns at
// once if the sink is not an Inspector.
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
			r.cfg.Logger.Warn("streams: inspecting the sink failed; retrying later", "sink", r.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Defaults of an inspection, which reads the whole sink.
const (
	inspectEvery   = 5 * time.Minute // see Config.InspectEvery
	inspectTimeout = 10 * time.Minute
)
