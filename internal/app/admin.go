// This file is the admin API: Status reports how far every sink is, and Verify compares the sinks
// by content. Both iterate over the modules, so a new service or view needs no code here.

package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/history"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/telemetry"
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

// Status implements AdminService. It reports what this process can see: its roles decide which
// sinks those are.
func (p *App) Status(
	ctx context.Context, _ *connect.Request[adminv1.StatusRequest],
) (*connect.Response[adminv1.StatusResponse], error) {
	sinks, err := p.sinks(ctx)
	if err != nil {
		return nil, err
	}
	// Broken tables are part of the answer. An error here is one of the catalog.
	broken, err := p.brokenTables(ctx)
	if err != nil {
		return nil, err
	}
	res := &adminv1.StatusResponse{Addresses: p.addresses}
	for _, k := range sinks {
		s := &adminv1.SinkStatus{Sink: k.Name, Unit: k.Unit, Count: k.Count, LagEvents: k.Lag}
		if !k.AsOf.IsZero() {
			s.AsOf = timestamppb.New(k.AsOf)
		}
		res.Sinks = append(res.Sinks, s)
	}
	for _, f := range broken {
		res.Tables = append(res.Tables, &adminv1.TableFault{Table: f.Table, Reason: f.Err.Error(), Remedy: f.Remedy})
	}
	res.Tables = append(res.Tables, p.historyFaults()...)
	for _, v := range p.views {
		for _, f := range v.Faults().List() {
			res.Views = append(res.Views, &adminv1.ViewFault{View: v.Name, Part: f.Part, Reason: f.Reason,
				Since: timestamppb.New(f.Since)})
		}
	}
	// Status reports only what this process knows. Other processes have their own.
	for _, f := range p.settingFaults() {
		res.Settings = append(res.Settings, &adminv1.SettingFault{
			Resource: f.Resource, Setting: f.Setting, Value: f.Value, Want: f.Want, Effect: f.Effect, Remedy: f.Remedy,
			Fatal: f.Fatal,
		})
	}
	if p.child != nil {
		if err := p.child.Err(); err != nil {
			res.SqlEngine = err.Error()
		}
	}
	return connect.NewResponse(res), nil
}

// remedyEngine is the remedy for a table that the SQL engine cannot read.
const remedyEngine = "remove what the SQL engine cannot read from the table and its old schemas, or use another engine"

// brokenTables returns the tables that the lake or the SQL engine cannot read, or that this process
// cannot land.
func (p *App) brokenTables(ctx context.Context) ([]*faults.TableError, error) {
	// A process without the lake has no tables to report.
	if p.lake == nil {
		return nil, nil
	}
	_, broken, err := p.lake.Report(ctx)
	if err != nil || p.sql == nil {
		return broken, err
	}
	// The lake can read these tables, but the SQL engine cannot.
	for _, u := range p.sql.Unreadable() {
		broken = append(broken, &faults.TableError{Table: u.Table, Remedy: remedyEngine, Err: u})
	}
	return broken, nil
}

// sinks returns the progress of every sink that this process can ask. If some fail, it returns the
// others together with the errors.
func (p *App) sinks(ctx context.Context) ([]telemetry.Sink, error) {
	var all []telemetry.Sink
	var errs []error
	add := func(sinks []telemetry.Sink, err error) {
		all, errs = append(all, sinks...), append(errs, err)
	}
	// In the order of the data's way: stores and topics, views, tables.
	if len(p.stores) > 0 {
		add(p.storeSinks(ctx))
	}
	for _, v := range p.views {
		add(viewSink(ctx, v))
	}
	add(p.processSinks(), nil)
	if p.lake != nil && p.admin != nil {
		add(p.tableSinks(ctx))
	}
	if p.admin != nil && p.showsHistory(ctx) {
		add(p.historySinks(ctx))
	}
	if p.tracking != nil {
		add(p.trackingSinks(), nil)
	}
	return all, errors.Join(errs...)
}

// storeSinks returns, for each service, how many events its store has and how many of them are on
// its topic. A process without Kafka reports the stores only.
func (p *App) storeSinks(ctx context.Context) (sinks []telemetry.Sink, err error) {
	stored := map[string]uint64{} // by topic
	for _, a := range p.modules.aggregates() {
		have, err := p.stores[a.Name].Stats(ctx, event.Position{})
		if err != nil {
			return sinks, err
		}
		stored[a.Topic] = have.Events
		sinks = append(sinks, telemetry.Sink{Name: "store " + a.Service, Unit: "events", Count: have.Events,
			AsOf: have.NewestRecorded})
	}
	if p.admin == nil {
		return sinks, nil
	}
	progress, err := p.progress(ctx)
	if err != nil {
		return sinks, err
	}
	for _, a := range p.modules.aggregates() {
		// What the relay has not reached is the lag; the rest of the store is on the topic.
		at := progress[a.Service]
		ahead, err := p.stores[a.Name].Stats(ctx, at.Position)
		if err != nil {
			return sinks, err
		}
		sinks = append(sinks, telemetry.Sink{
			Name: "topic " + a.Topic, Unit: "events", Count: stored[a.Topic] - min(ahead.Events, stored[a.Topic]),
			Lag: ahead.Events, AsOf: at.RecordedAt,
		})
	}
	return sinks, nil
}

// progress returns how far each store has been published, by service. A process that runs the
// relays reads it from them. Others read the relays' checkpoints from Kafka.
func (p *App) progress(ctx context.Context) (map[string]relay.Progress, error) {
	if len(p.relays) == 0 {
		// The caller's ctx may have no deadline, and a frozen broker does not answer.
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		return p.published.Poll(ctx)
	}
	// These relays run here, so no request to a broker is needed.
	progress := map[string]relay.Progress{}
	for _, a := range p.modules.aggregates() {
		progress[a.Service] = p.relays[a.Name].Progress()
	}
	return progress, nil
}

// viewSink returns the progress of a view, by its watermarks and the ends of the log.
func viewSink(ctx context.Context, v *view) ([]telemetry.Sink, error) {
	s, err := v.Status(ctx)
	if err != nil {
		return nil, err
	}
	return []telemetry.Sink{{
		Name: "view " + v.Name, Unit: "documents", Count: s.Documents, Lag: s.Lag, AsOf: s.AsOf,
	}}, nil
}

// tableSinks returns the rows and the lag of each table. The lag is counted in records of the
// topic, by the offsets that the table has committed.
func (p *App) tableSinks(ctx context.Context) ([]telemetry.Sink, error) {
	tables, err := p.lake.Tables(ctx)
	if err != nil {
		return nil, err
	}
	ends, err := p.ends(ctx)
	if err != nil {
		return nil, err
	}
	var sinks []telemetry.Sink
	for _, t := range tables {
		// A partition that the table has not begun counts from offset 0.
		var lag uint64
		for partition, end := range ends[t.Topic] {
			lag += uint64(max(0, end-t.Offsets[partition]))
		}
		sinks = append(sinks, telemetry.Sink{Name: "table " + t.Name, Unit: "rows", Count: uint64(t.Rows), Lag: lag,
			AsOf: t.AsOf})
	}
	return sinks, nil
}

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
		if err := v.runner.CatchUp(ctx); err != nil {
			return err
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
	for _, s := range p.modules.Sources { // there is no store to compare with
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
			if f.Aggregate == a {
				derive("documents", "view "+v.Name,
					func(ctx context.Context) (*digest.Digest, error) { return v.Digest(ctx, a) }, f.Expected)
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
	if err == nil && d.Invalid > 0 {
		p.log.Warn("verify: records on a topic are not events", "topic", topic, "records", d.Invalid, "first",
			d.FirstInvalid)
	}
	return d, err
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
