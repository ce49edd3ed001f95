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
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
)

// Config says how to land.
type Config struct {
	Brokers  []string          // host:port
	Security security.Config   // how to reach them
	Decoder  *registry.Decoder // reads values that were written with a schema registry; nil knows plain ones only
	// Park takes the records that are no events. It must have made them durable when it returns; it is called again for
	// the same records after a crash.
	Park Parker
	// CommitInterval is how long a row waits at most until it is in its table. A topic that falls silent is committed
	// at once, but there are never more than two commits per interval. 0 means a second.
	CommitInterval time.Duration
	// CommitBytes of events are committed without waiting. 0 means 64 MiB.
	CommitBytes int64

	// Maintenance keeps the tables small meanwhile; nil leaves that to others.
	Maintenance *maintenance.Config
	// Instance names this process for good among those that land, where that is certain: after a crash it then goes on
	// at once, where the others would first miss it for six seconds. May be empty.
	Instance string
	// Landers is how many work at each table at a time in this process, each on partitions of its own; 0 means 1.
	Landers int

	unknown  time.Duration // how long commits may fail for reasons that nobody knows; 0 means unknownHolds
	again    time.Duration // until a table is looked at again that could not be landed; 0 means lake.LookAgain
	hook     hook
	refresh  time.Duration // how often to look for partitions that a topic was given
	patience time.Duration // how long the others wait for a lander that is in the middle of a landing
}

// Parker keeps records that are no events where people can look at them, so that the rest of the topic can land.
type Parker func(ctx context.Context, records []Parked) error

// Parked is a record that is no event. Sink, topic, partition and offset name it. Its bytes hold until the Parker
// returns.
type Parked struct {
	Sink       string // "lake/orders_events"
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time // the record's own
	Key, Value []byte
	Headers    []event.Header
	Reason     error
}

// Run lands every table of a lake until ctx is done, and then returns nil. Several processes may do so at once and share the
// topics' partitions. What can pass by itself (brokers or catalog out of reach, another lander at the same partition)
// is logged and tried again. A table that cannot be landed as it is stops alone: Stopped says why, and from time to
// time it is looked at again, for as long as others are landed. Where none is left, Run ends with a *TableError. It may
// be called again.
func Run(ctx context.Context, l *lake.Lake, c Config) error {
	if c.Park == nil {
		return errors.New("lake: RunConfig.Park is missing")
	}
	if c.CommitInterval <= 0 {
		c.CommitInterval = defaults.CommitInterval
	}
	if c.CommitBytes <= 0 {
		c.CommitBytes = defaults.CommitBytes
	}
	c.Landers = max(c.Landers, 1)
	if c.again <= 0 {
		c.again = lake.LookAgain
	}
	if c.unknown <= 0 {
		c.unknown = unknownHolds
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range l.Declared() {
		first := new(atomic.Int32) // landers in this process that have the first partition
		g.Go(func() error { return landTable(ctx, l, t, c, first) })
		if c.Maintenance != nil {
			g.Go(func() error { return l.Keep(ctx, t, *c.Maintenance, func() bool { return first.Load() > 0 }) })
		}
	}
	return g.Wait()
}

// landTable lands a table until ctx is done, or until no table can be landed.
func landTable(ctx context.Context, l *lake.Lake, t declare.Table, c Config, first *atomic.Int32) error {
	again := func() error {
		if err := l.Prepare(ctx, t); faults.Of(t.DisplayName(), err) != nil {
			return err
		}
		return nil // or it passes: the landers wait for that
	}
	err := error(nil)
	if fault := l.Fault(t); fault != nil { // found by Open
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
		if all := l.Stopped(); len(all) == len(l.Declared()) {
			return joined(all)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.again):
		}
		err = again()
	}
}

// landPartitions runs a table's landers of this process.
func landPartitions(ctx context.Context, l *lake.Lake, t declare.Table, c Config, first *atomic.Int32) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range c.Landers {
		lander := &lander{lake: l, table: t, config: c, number: i, first: first, sifts: map[int32]int64{}, log: l.Logger().With("table", t.Name)}
		g.Go(func() error { return lander.run(ctx) })
	}
	return g.Wait()
}

func joined(all []*faults.TableError) error {
	errs := make([]error, len(all))
	for i, e := range all {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// hook is called at each step of a landing, so that tests can break it there. An error makes the step fail.
type hook func(ctx context.Context, table string, s step) error

type step string

const (
	stepFetched   step = "records fetched"
	stepLookedUp  step = "rows before looked up" // of a table of state
	stepGrow      step = "about to add columns"
	stepGrown     step = "columns added, rows not yet"
	stepPark      step = "about to park"
	stepParked    step = "parked, offsets not moved"
	stepClosed    step = "data file closed"
	stepCommit    step = "about to commit"
	stepCommitted step = "committed, answer not used yet"
)

func (c Config) at(ctx context.Context, table string, s step) error {
	if c.hook == nil {
		return failpoint.Hit("lake." + table + "." + string(s))
	}
	return c.hook(ctx, table, s)
}
