// This file wires the history of features: facts and tiles in ClickHouse, which the role features
// fills. A process with the role admin opens it, too, for status and verify.

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/history"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/verify"
)

// openHistory opens the history on the configured ClickHouse, or on the engine of this process. It
// makes no request. A process that only answers status and verify may have neither; then there is no
// history.
func (p *App) openHistory(context.Context) error {
	if p.modules.Groups == nil || p.cfg.ClickHouse.URL == "" && p.child == nil {
		return nil
	}
	groups, err := p.modules.Groups(p.cfg)
	if err != nil {
		return err
	}
	store, err := OpenStore(p.cfg.ClickHouse, p.child, p.dependencies.Named("clickhouse"))
	if err != nil {
		return err
	}
	p.facts = store
	p.onStop(store.Close)
	deadLetters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		deadLetters.Close()
		return nil
	})
	p.history, err = history.Open(history.Config{
		Store: store, Groups: groups, Logger: p.log, Retention: p.cfg.Features.Retention,
		Brokers: strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder,
		WriteDeadLetters: p.countedLetters("features history", deadLetters.Write),
		CommitInterval:   p.cfg.Features.CommitInterval, Archive: featureArchive{p},
		Tracer: p.tracer,
	})
	return err
}

// startHistory fills the tables in the background. Nothing waits for it: while ClickHouse or the
// engine does not answer, it tries again.
func (p *App) startHistory(context.Context) error {
	if p.history == nil {
		return nil
	}
	p.metrics.Labelled("millrace_features_stopped",
		"1 for each table of features in ClickHouse that this process does not fill at present.", []string{"table"},
		func(is func(labels ...string)) {
			for _, fault := range p.history.Faults() {
				is(fault.Table)
			}
		})
	p.background("features", p.history.Run)
	return nil
}

// showsHistory reports whether status and verify include the tables: in a process that fills them, and
// in another one if it can read them and there is anything in them. A system need not have the role
// features.
func (p *App) showsHistory(ctx context.Context) bool {
	if p.history == nil || p.wanted[featureFeeds] {
		return p.history != nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tables, err := p.history.Status(ctx)
	if err != nil {
		p.log.Info("features: this process cannot read the tables, so status and verify leave them out", "error", err)
	}
	return err == nil && slices.ContainsFunc(tables, func(t history.TableStatus) bool { return len(t.Next) > 0 })
}

// remedyHistory is the remedy for a table that cannot take data.
const remedyHistory = "remove the cause; if the tables do not fit the log or the definition any more, " +
	"run `millrace rebuild` for the service of the topic, which fills them again"

// historyFaults returns the tables that are not filled, and why.
func (p *App) historyFaults() []*adminv1.TableFault {
	if p.history == nil {
		return nil
	}
	var all []*adminv1.TableFault
	for _, f := range p.history.Faults() {
		all = append(all, historyFault(f))
	}
	return all
}

// historyFault returns why a table is not filled, with the remedy.
func historyFault(f history.Fault) *adminv1.TableFault {
	fault := &adminv1.TableFault{Table: "features." + f.Table, Reason: f.Reason.Error(), Remedy: remedyHistory}
	if !f.Stopped {
		fault.Transient, fault.Remedy = true, "none, if it passes: it is tried again"
	}
	return fault
}

// historySinks returns the rows and the lag of each table. If ClickHouse does not answer, there are
// none: Faults reports it, and everything else has a status.
func (p *App) historySinks(ctx context.Context) ([]telemetry.Sink, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tables, err := p.history.Status(ctx)
	if err != nil {
		p.log.Warn("features: ClickHouse does not report how far the tables are", "error", err)
		return nil, nil
	}
	ends, err := p.historyEnds(ctx)
	if err != nil {
		return nil, err
	}
	var sinks []telemetry.Sink
	for _, t := range tables {
		read := telemetry.Reading{Topic: t.Topic, Next: t.Next, Ends: ends[t.Topic]}
		name := "features " + t.Table
		if t.Filling {
			name += " (filling)"
		}
		sinks = append(sinks, telemetry.Sink{Name: name, Unit: "rows", Count: t.Rows, Lag: read.Events(), AsOf: t.AsOf,
			Reads: []telemetry.Reading{read}})
	}
	return sinks, nil
}

// historyEnds returns the end offsets of the topics from which the history is filled. Topics that do
// not exist yet have none.
func (p *App) historyEnds(ctx context.Context) (map[string]map[int32]int64, error) {
	ends := map[string]map[int32]int64{}
	for _, topic := range p.history.Topics() {
		end, err := p.admin.EndOffsets(ctx, topic)
		if err != nil && !errors.Is(err, kafka.ErrUnknownTopic) {
			return nil, err
		}
		ends[topic] = end
	}
	return ends, nil
}

// historyCatchUp blocks until the tables have what is on the topics now. Tables that cannot be filled
// do not block it: the comparison reports them.
func (p *App) historyCatchUp(ctx context.Context) error {
	ends, err := p.historyEnds(ctx)
	if err != nil {
		return err
	}
	var last error
	for topic, end := range ends {
		err := p.until(ctx, "features of "+topic, func() (bool, error) {
			ok, err := p.history.Reached(ctx, topic, end)
			if clickhouse.Retryable(err) {
				last = err
				return false, nil
			}
			return ok, err
		})
		if err != nil {
			return errors.Join(err, last)
		}
	}
	return nil
}

// historyComparisons returns those of the tables that are filled from a topic. expected adds one
// that compares facts with the events of the topic's store; it may be nil.
func (p *App) historyComparisons(topic string, expected func(history.Content)) []verify.Comparison {
	var all []verify.Comparison
	for _, c := range p.history.Contents() {
		switch {
		case c.Topic != topic:
		case c.Source != nil:
			all = append(all, verify.Comparison{Unit: c.Unit, Sides: []verify.Side{
				{Name: "features " + c.From, Digest: readableDigest(c.Source)},
				{Name: "features " + c.Table, Digest: readableDigest(c.Digest)},
			}})
		case expected != nil:
			expected(c)
		}
	}
	return all
}

// readableDigest turns an error of ClickHouse about one table into a result for that table.
func readableDigest(of func(context.Context) (*digest.Digest, error)) func(context.Context) (*digest.Digest, error) {
	return func(ctx context.Context) (*digest.Digest, error) {
		d, err := of(ctx)
		if clickhouse.IsSchema(err) {
			return nil, &verify.UnreadableError{Err: err}
		}
		return d, err
	}
}

// dropHistory drops the tables that are filled from an aggregate's topic. With an embedded engine,
// it starts the engine for this, unless there are no tables.
func (p *App) dropHistory(ctx context.Context, a event.Aggregate, report func(string)) error {
	if p.cfg.ClickHouse.URL == "" {
		if _, err := os.Stat(p.cfg.Path("clickhouse")); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		p.wanted[folder] = true // which this process has locked
		if err := p.startChild(ctx); err != nil {
			return err
		}
		if err := p.engineDown(); err != nil {
			return fmt.Errorf("the tables of features cannot be dropped: %w", err)
		}
	}
	if err := p.openHistory(ctx); err != nil || p.history == nil {
		return err
	}
	dropped, err := p.history.Drop(ctx, a.Topic)
	for _, name := range dropped {
		report("table features." + name + " is dropped")
	}
	return err
}
