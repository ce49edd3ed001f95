// This file is Verify of the admin API, which compares the sinks by content. It iterates over the
// modules, so a new service or view needs no code here.

package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/history"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/verify"
)

const (
	defaultWait = time.Minute
	// The intervals between polls of a sink that cannot notify: the first, and the longest. They grow,
	// because polls slow down what they wait for.
	pollInterval = 20 * time.Millisecond
	pollMax      = 500 * time.Millisecond
	readBatch    = 2000 // events per read of a store
	attempts     = 3    // at a comparison, while commands keep coming
)

// Verify implements AdminService. It streams its progress, and ends with one result. A difference
// is a result; an error means that the sides could not be compared.
func (p *App) Verify(
	ctx context.Context, req *connect.Request[adminv1.VerifyRequest],
	stream *connect.ServerStream[adminv1.VerifyResponse],
) error {
	wait := defaultWait
	if req.Msg.Wait != nil {
		wait = req.Msg.Wait.AsDuration()
	}
	// A send fails only if the caller has gone. Then ctx is done, and the comparison ends by that.
	progress := func(doing string, done, total int) {
		_ = stream.Send(&adminv1.VerifyResponse{Step: &adminv1.VerifyResponse_Progress{Progress: &adminv1.VerifyProgress{
			Doing: doing, Done: uint64(done), Total: uint64(total),
		}}})
	}
	// Commands that arrive during a comparison can make equal sides look different. A difference
	// counts only if no store changed meanwhile.
	for attempt := 1; ; attempt++ {
		r, moved, err := p.comparePatiently(ctx, wait, progress)
		if err != nil {
			return err
		}
		if r.Equal || !moved || attempt == attempts {
			if !r.Equal && moved {
				return connect.NewError(connect.CodeAborted,
					fmt.Errorf("events kept arriving during the comparison (%d attempts): run verify again while no commands are sent", attempts))
			}
			return stream.Send(&adminv1.VerifyResponse{Step: &adminv1.VerifyResponse_Result{Result: result(r)}})
		}
		progress("events arrived during the comparison; comparing again", 0, 0)
	}
}

// comparePatiently is compare that begins again, until wait has passed, if a store or a broker does
// not answer.
func (p *App) comparePatiently(
	ctx context.Context, wait time.Duration, progress verify.Progress,
) (r verify.Result, moved bool, err error) {
	end := time.Now().Add(wait)
	for waits := backoff.Server.Start(); ; {
		r, moved, err = p.compare(ctx, max(time.Until(end), 0), progress)
		final := (*connect.Error)(nil) // its code says that trying again is useless
		if err == nil || errors.As(err, &final) || !time.Now().Before(end) {
			return r, moved, err
		}
		p.log.Warn("verify: a dependency failed; comparing again", "error", err)
		progress("a dependency failed; trying again: "+err.Error(), 0, 0)
		select {
		case <-time.After(waits.Next()):
		case <-p.failed:
			return r, moved, err
		case <-ctx.Done():
			return r, moved, err
		}
	}
}

// compare waits until the sinks have caught up, and compares them. moved reports whether a store
// took events meanwhile.
func (p *App) compare(
	ctx context.Context, wait time.Duration, progress verify.Progress,
) (r verify.Result, moved bool, err error) {
	// wait bounds the catching up only. The comparison may take as long as the caller allows.
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// A store has changed during the comparison if its head differs before and after.
	before, err := p.heads(ctx)
	if err != nil {
		return r, false, err
	}
	outside, err := p.sourceEnds(ctx)
	if err != nil {
		return r, false, err
	}
	if err := p.CatchUp(bounded, progress); err != nil {
		if bounded.Err() != nil && ctx.Err() == nil { // wait has passed, not the caller's deadline
			return r, false, connect.NewError(connect.CodeDeadlineExceeded,
				fmt.Errorf("not every sink caught up within %v: %w: increase --wait, or see `millrace status`", wait, err))
		}
		return r, false, err
	}
	if r, err = verify.Run(ctx, p.subjects(ctx, p.showsHistory(ctx)), progress); err != nil {
		return r, false, err
	}
	after, err := p.heads(ctx)
	if err != nil {
		return r, false, err
	}
	for name, head := range before {
		moved = moved || after[name] != head
	}
	outsideNow, err := p.sourceEnds(ctx)
	same := maps.EqualFunc(outside, outsideNow, func(a, b map[int32]int64) bool { return maps.Equal(a, b) })
	return r, moved || !same, err
}

// heads returns the position of each store, by aggregate.
func (p *App) heads(ctx context.Context) (map[string]event.Position, error) {
	heads := map[string]event.Position{}
	for name, store := range p.stores {
		head, err := store.Head(ctx)
		if err != nil {
			return nil, err
		}
		heads[name] = head
	}
	return heads, nil
}

// CatchUp returns once every sink contains what the stores contain now. The order matters: the ends
// of the topics are read after the stores are published, so views and tables that have reached
// these ends contain all of it. ctx bounds the wait. A broken table does not block it.
func (p *App) CatchUp(ctx context.Context, progress verify.Progress) error {
	// A step for each topic, each view, and the tables of each topic.
	total := len(p.modules.aggregates()) + len(p.modules.topics()) + len(p.views)
	withHistory := p.showsHistory(ctx)
	if withHistory {
		total++
	}
	done := 0
	report := func(what string) { progress("waiting for "+what, done, total); done++ }

	// 1. Every store is published up to its present head.
	heads, err := p.heads(ctx)
	if err != nil {
		return err
	}
	for _, a := range p.modules.aggregates() {
		report("topic " + a.Topic)
		err := p.until(ctx, "topic "+a.Topic, func() (bool, error) {
			progress, err := p.progress(ctx)
			return err == nil && progress[a.Service].Position.Compare(heads[a.Name]) >= 0, err
		})
		if err != nil {
			return err
		}
	}
	// 2. Views and tables have reached the ends that the topics have now.
	ends, err := p.ends(ctx)
	if err != nil {
		return err
	}
	for _, v := range p.views {
		report("view " + v.Name)
		for _, o := range v.complete() {
			if err := o.runner.CatchUp(ctx); err != nil {
				return err
			}
		}
	}
	for _, topic := range p.modules.topics() {
		report("tables of " + topic)
		err := p.until(ctx, "tables of "+topic, func() (bool, error) {
			applied, err := p.lake.Applied(ctx, topic)
			if broken := (*faults.TableError)(nil); errors.As(err, &broken) {
				return true, nil // waiting would not help, and the comparison reports the table
			}
			if err != nil {
				return false, err
			}
			// Every table of the topic has to reach the end of every partition.
			for partition, end := range ends[topic] {
				if applied[partition] < end {
					return false, nil
				}
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	if withHistory {
		report("features")
		if err := p.historyCatchUp(ctx); err != nil {
			return err
		}
	}
	progress("caught up", total, total)
	return nil
}

// until polls reached until it returns true, ctx is done or the process has failed.
func (p *App) until(ctx context.Context, what string, reached func() (bool, error)) error {
	for interval := pollInterval; ; interval = min(interval*2, pollMax) {
		ok, err := reached()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(interval):
		case <-p.failed:
			return errors.New("the system has failed")
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
	}
}

// ends returns the end offset of each partition, by topic: that of the next record. Only committed
// transactions count.
func (p *App) ends(ctx context.Context) (map[string]map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ends := map[string]map[int32]int64{}
	for _, topic := range p.modules.topics() {
		var err error
		if ends[topic], err = p.admin.EndOffsets(ctx, topic); err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// subjects returns all comparisons: for each service, its events in store, topic and table, and
// each view and derived table against a digest of what the store's events should produce. Each
// digest is computed only when the comparison runs, by a function that the side contains.
func (p *App) subjects(ctx context.Context, withHistory bool) []verify.Subject {
	var subjects []verify.Subject
	for _, s := range p.modules.Services {
		subjects = append(subjects, verify.Subject{Aggregate: s.Aggregate.Name, Comparisons: p.comparisons(s, withHistory)})
	}
	for _, s := range p.modules.Sources { // no store has their events
		all := p.sourceComparisons(ctx, s.Aggregate)
		if withHistory {
			all = append(all, p.historyComparisons(s.Aggregate.Topic, nil)...)
		}
		if len(all) > 0 {
			subjects = append(subjects, verify.Subject{Aggregate: s.Aggregate.Name, Comparisons: all})
		}
	}
	return subjects
}

// comparisons returns those of one service. The first compares the events themselves: store, topic
// and events table. Each of the others compares one derived sink with its expectation, which is
// computed from the store, not from the topic.
func (p *App) comparisons(s Service, withHistory bool) []verify.Comparison {
	a, store := s.Aggregate, p.stores[s.Aggregate.Name]
	type digester = func(context.Context) (*digest.Digest, error)
	same := verify.Comparison{Unit: "events", Sides: []verify.Side{
		{Name: "store " + a.Service, Digest: func(ctx context.Context) (*digest.Digest, error) {
			return eventsDigest(events(ctx, store))
		}},
		{Name: "topic " + a.Topic, Digest: func(ctx context.Context) (*digest.Digest, error) {
			return p.topicDigest(ctx, a.Topic)
		}},
	}}
	// Every derived sink has a comparison of its own, because its unit differs from events.
	var derived []verify.Comparison
	derive := func(
		unit, name string, actual digester,
		expected func(iter.Seq2[event.Event, error]) (*digest.Digest, error),
	) {
		derived = append(derived, verify.Comparison{Unit: unit, Sides: []verify.Side{
			{Name: "store " + a.Service, Digest: func(ctx context.Context) (*digest.Digest, error) {
				return expected(events(ctx, store))
			}},
			{Name: name, Digest: actual},
		}})
	}
	for _, v := range p.views {
		for _, f := range v.Feeds {
			if f.Aggregate != a {
				continue
			}
			for _, o := range v.complete() {
				derive("documents", "view "+o.sink,
					func(ctx context.Context) (*digest.Digest, error) { return o.Digest(ctx, a) }, f.Expected)
			}
		}
		if v.Feeds[0].Aggregate == a {
			derived = append(derived, p.membershipComparisons(v)...)
		}
	}
	for _, t := range s.Tables {
		actual := tableDigest(func(ctx context.Context) (*digest.Digest, error) { return p.lake.Digest(ctx, t.Name) })
		// The table of events holds the events themselves. Every other table is derived from them.
		if t.Events == a {
			same.Sides = append(same.Sides, verify.Side{Name: "table " + t.Name, Digest: actual})
			continue
		}
		derive("rows", "table "+t.Name, actual, func(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
			return t.Sums.Expect(readable(a, events))
		})
	}
	if !withHistory {
		return append([]verify.Comparison{same}, derived...)
	}
	features := p.historyComparisons(a.Topic, func(c history.Content) {
		derive(c.Unit, "features "+c.Table, readableDigest(c.Digest),
			func(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
				return c.Expected(readable(a, events))
			})
	})
	return append(append([]verify.Comparison{same}, derived...), features...)
}

// tableDigest turns an error of one table into a result for that table, so that the other
// comparisons still run.
func tableDigest(of func(context.Context) (*digest.Digest, error)) func(context.Context) (*digest.Digest, error) {
	return func(ctx context.Context) (*digest.Digest, error) {
		d, err := of(ctx)
		if broken := (*faults.TableError)(nil); errors.As(err, &broken) {
			return nil, &verify.UnreadableError{Err: broken}
		}
		return d, err
	}
}

// events reads a store from its beginning, in batches. It ends with the first error, which the last
// pair contains.
func events(ctx context.Context, store eventstore.Store) iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		var after event.Position
		for {
			batch, err := store.Read(ctx, after, readBatch)
			if err != nil {
				yield(event.Event{}, err)
				return
			}
			if len(batch) == 0 {
				return
			}
			for _, e := range batch {
				if !yield(e, nil) {
					return
				}
			}
			after = batch[len(batch)-1].Position
		}
	}
}

// readable leaves out events that readers reject, as tables do. If the store has such an event, the
// comparison of the events themselves reports it.
func readable(a event.Aggregate, events iter.Seq2[event.Event, error]) iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		for e, err := range events {
			if (err != nil || a.Check(e) == nil) && !yield(e, err) {
				return
			}
		}
	}
}

// eventsDigest returns the digest of events. A digest does not depend on the order of the events,
// so sides that are read in different orders can be compared.
func eventsDigest(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	d := digest.New()
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		d.AddEvent(e)
	}
	return d, nil
}

// topicDigest reads a topic as every consumer does. A record that is not an event does not count as
// content, because sinks turn it into a dead letter. Such records are counted as invalid.
func (p *App) topicDigest(ctx context.Context, topic string) (*digest.Digest, error) {
	end, err := p.admin.EndOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	// The same checks as in the sinks: seal, and growing positions per partition.
	d, sequences := digest.New(), map[int32]event.Sequence{}
	err = kafka.ReadAll(ctx, p.kafka, topic, nil, end, func(m kafka.Message) error {
		e, sealed, err := p.decoder.Sealed(ctx, registry.Record{
			Topic: topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Headers: m.Headers,
		})
		// A copy of a sealed record is not an event either. It is recognised by its store position,
		// which must grow within a partition.
		if err == nil && sealed {
			sequences[m.Partition], err = sequences[m.Partition].Next(e.Position, m.Headers)
		}
		// An unavailable registry says nothing about the record, so the comparison fails.
		if errors.Is(err, registry.ErrUnavailable) {
			return err
		}
		if err != nil {
			d.AddInvalid(func() string {
				return fmt.Sprintf("partition %d, offset %d: %v", m.Partition,
					m.Offset, err)
			})
			return nil //nolint:nilerr // it is counted; the topic goes on
		}
		d.AddEvent(e)
		return nil
	})
	if err == nil {
		err = p.addArchived(ctx, topic, d)
	}
	if err == nil && d.Invalid > 0 {
		p.log.Warn("verify: records on a topic are not events", "topic", topic, "records", d.Invalid, "first",
			d.FirstInvalid)
	}
	return d, err
}

// addArchived adds the events that the topic has deleted and the lake has.
func (p *App) addArchived(ctx context.Context, topic string, d *digest.Digest) error {
	starts, err := p.admin.StartOffsets(ctx, topic)
	if err != nil {
		return err
	}
	deleted := map[int32]lake.Offsets{}
	for partition, start := range starts {
		if start > 0 {
			deleted[partition] = lake.Offsets{To: start}
		}
	}
	if len(deleted) == 0 {
		return nil
	}
	err = p.lake.EventsIn(ctx, topic, deleted, func(e event.Event, _ int32, _ int64) error {
		d.AddEvent(e)
		return nil
	})
	if errors.Is(err, lake.ErrNoLake) || errors.Is(err, lake.ErrNoEvents) {
		return nil // the comparison shows what is missing
	}
	return err
}

// result converts the outcome of a verification to its message.
func result(r verify.Result) *adminv1.VerifyResult {
	out := &adminv1.VerifyResult{Equal: r.Equal}
	for _, g := range r.Aggregates {
		o := &adminv1.AggregateResult{Aggregate: g.Aggregate, Equal: g.Equal, Difference: g.Difference}
		for _, s := range g.Sides {
			o.Sides = append(o.Sides, &adminv1.SideDigest{Side: s.Side, Unit: s.Unit, Count: s.Sum.Count,
				Hash: s.Sum.Hash(), NotEvents: s.Invalid, FirstNotEvent: s.FirstInvalid})
		}
		out.Aggregates = append(out.Aggregates, o)
	}
	return out
}
