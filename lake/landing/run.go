package landing

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/defaults"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
)

// Config has the settings of a landing.
type Config struct {
	Brokers  []string          // host:port
	Security security.Config   // TLS and SASL
	Decoder  *registry.Decoder // decodes values with a schema registry; nil: plain values only
	// WriteDeadLetters stores dead letters: records that do not fit their table. They must be
	// durable when it returns. After a crash it may be called again for the same records.
	WriteDeadLetters DeadLetterWriter
	// Meter measures the landing. It may be nil.
	Meter Meter
	// CommitInterval is the maximum time until a row is in its table. If a topic falls silent, its
	// rows are committed early, but there are at most two commits per interval. 0 means one second.
	CommitInterval time.Duration
	// CommitBytes is the size of pending values that triggers a commit. 0 means 64 MiB.
	CommitBytes int64

	// Maintenance maintains the tables meanwhile. nil leaves that to other processes.
	Maintenance *maintenance.Config
	// Maintains reports whether a table is to be maintained now. It is called often, and may change
	// its answer at any time. nil: always.
	Maintains func(table string) bool
	// Instance is a stable name of this process, unique among the landing processes, or empty. With
	// it, a restarted process resumes immediately after a crash. Without it, the group first has to
	// notice the failure, which takes six seconds.
	Instance string
	// Landers is the number of landers per table in this process. Each has its own partitions. 0
	// means 1.
	Landers int
	// Tracer records the commit of each event, in the trace of its command. It may be nil.
	Tracer *tracing.Tracer

	unknownTimeout   time.Duration // how long unclassified commit errors may last; 0 means unknownLimit
	retryInterval    time.Duration // interval of attempts to land a stopped table; 0 means lake.RetryInterval
	hook             hook
	refresh          time.Duration // interval of checks for new partitions
	rebalanceTimeout time.Duration // how long the group waits for a lander that is committing
}

// DeadLetterWriter stores dead letters where they can be inspected, so that the rest of the topic
// can land.
type DeadLetterWriter func(ctx context.Context, records []DeadLetter) error

// DeadLetter is a record that does not fit its table. Sink, topic, partition and offset identify
// it. Its byte slices are valid until the DeadLetterWriter returns.
type DeadLetter struct {
	Sink       string // such as "lake/orders_events"
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time // timestamp of the record
	Key, Value []byte
	Headers    []event.Header
	Reason     error
}

// Run lands every table of a lake until ctx is done, and then returns nil. Several processes can
// run it at once and share the partitions.
//
// Temporary errors, such as an unreachable broker or catalog or a lost partition, are logged and
// retried. A table that cannot be landed stops alone: Stopped returns its fault, and landing is
// retried at intervals while other tables land. If no table is left, Run returns a *TableError. It
// may then be called again.
func Run(ctx context.Context, l *lake.Lake, c Config) error {
	// Without a place for dead letters, one bad record would block its partition forever.
	if c.WriteDeadLetters == nil {
		return errors.New("landing: Config.WriteDeadLetters is required")
	}
	if c.CommitInterval <= 0 {
		c.CommitInterval = defaults.CommitInterval
	}
	if c.CommitBytes <= 0 {
		c.CommitBytes = defaults.CommitBytes
	}
	c.Landers = max(c.Landers, 1)
	if c.retryInterval <= 0 {
		c.retryInterval = lake.RetryInterval
	}
	if c.unknownTimeout <= 0 {
		c.unknownTimeout = unknownLimit
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range l.Declared() {
		first := new(atomic.Int32) // landers of this process that have the first partition
		g.Go(func() error { return landTable(ctx, l, t, c, first) })
		if c.Maintenance != nil {
			g.Go(func() error {
				return l.Keep(ctx, t, *c.Maintenance, func() bool {
					return first.Load() > 0 && (c.Maintains == nil || c.Maintains(t.DisplayName()))
				})
			})
		}
	}
	return g.Wait()
}

// landTable lands a table until ctx is done or no table can be landed.
func landTable(ctx context.Context, l *lake.Lake, t declare.Table, c Config, first *atomic.Int32) error {
	again := func() error {
		if err := l.Prepare(ctx, t); faults.Of(t.DisplayName(), err) != nil {
			return err
		}
		return nil // or the error is temporary: the landers retry
	}
	// A table that Open could not prepare is tried once more before landing.
	err := error(nil)
	if fault := l.Fault(t); fault != nil { // by Open
		err = again()
	}
	for {
		if err == nil {
			err = landPartitions(ctx, l, t, c, first)
		}
		fault := faults.Of(t.DisplayName(), err)
		if fault == nil {
			return err
		}
		l.Stop(ctx, t, fault)
		// Nothing left to land: return instead of waiting, so that the caller notices.
		if all := l.Stopped(); len(all) == len(l.Declared()) {
			return joined(all)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.retryInterval):
		}
		err = again()
	}
}

// landPartitions runs this process's landers of a table.
func landPartitions(ctx context.Context, l *lake.Lake, t declare.Table, c Config, first *atomic.Int32) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range c.Landers {
		lander := &lander{
			lake: l, table: t, config: c, number: i, first: first, bisectUntil: map[int32]int64{},
			log: l.Logger().With("table", t.Name),
		}
		g.Go(func() error { return lander.run(ctx) })
	}
	return g.Wait()
}

// joined returns all faults as one error.
func joined(all []*faults.TableError) error {
	errs := make([]error, len(all))
	for i, e := range all {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// hook is called at each step of a landing. Tests use it to inject failures: a returned error fails
// the step.
type hook func(ctx context.Context, table string, s step) error

// step is a point in a landing at which tests inject failures.
type step string

const (
	stepFetched            step = "records fetched"
	stepLookedUp           step = "rows before looked up" // keyed tables only
	stepGrow               step = "about to add columns"
	stepGrown              step = "columns added, rows not yet"
	stepDeadLetters        step = "about to park"
	stepDeadLettersWritten step = "parked, offsets not moved"
	stepClosed             step = "data file closed"
	stepCommit             step = "about to commit"
	stepCommitted          step = "committed, answer not used yet"
)

// at calls the hook for a step, or without one the failpoint of that name.
func (c Config) at(ctx context.Context, table string, s step) error {
	if c.hook == nil {
		return failpoint.Hit("lake." + table + "." + string(s))
	}
	return c.hook(ctx, table, s)
}
