// This file is Status of the admin API, which reports how far every sink is. It iterates over the
// modules, so a new service or view needs no code here.

package app

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/readmodels/versions"
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
	for _, o := range p.versions() {
		for _, f := range o.Faults().List() {
			res.Views = append(res.Views, &adminv1.ViewFault{View: o.sink, Part: f.Part, Reason: f.Reason,
				Since: timestamppb.New(f.Since)})
		}
	}
	for _, v := range p.views {
		if s, is := v.outdated(); is {
			short, _, _ := strings.Cut(v.Name, "/")
			res.Outdated = append(res.Outdated, &adminv1.OutdatedView{
				View: versions.Sink(v.Name, s.Name), BuiltBy: int32(s.Projection), Current: int32(v.Projection),
				Remedy: "build it again with `millrace replay --target " + short + " --yes`",
			})
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
// others together with the errors. They are asked at the same time, so that a server that does not
// answer does not take the time of the others.
func (p *App) sinks(ctx context.Context) ([]telemetry.Sink, error) {
	type query func(context.Context) ([]telemetry.Sink, error)
	// In the order of the data's way: stores and topics, views, tables.
	var queries []query
	if len(p.stores) > 0 {
		queries = append(queries, p.storeSinks)
	}
	for _, o := range p.versions() {
		queries = append(queries, func(ctx context.Context) ([]telemetry.Sink, error) { return viewSink(ctx, o) })
	}
	queries = append(queries, func(context.Context) ([]telemetry.Sink, error) { return p.processSinks(), nil })
	if p.lake != nil && p.admin != nil {
		queries = append(queries, p.tableSinks)
	}
	if p.admin != nil {
		queries = append(queries, func(ctx context.Context) ([]telemetry.Sink, error) {
			if !p.showsHistory(ctx) {
				return nil, nil
			}
			return p.historySinks(ctx)
		})
	}
	if p.tracking != nil {
		queries = append(queries, func(context.Context) ([]telemetry.Sink, error) { return p.trackingSinks(), nil })
	}
	answers, errs := make([][]telemetry.Sink, len(queries)), make([]error, len(queries))
	var running sync.WaitGroup
	for i, ask := range queries {
		running.Go(func() { answers[i], errs[i] = ask(ctx) })
	}
	running.Wait()
	all := slices.Concat(answers...)
	p.lags.Observe(time.Now(), all)
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
			Lag: ahead.Events, AsOf: at.RecordedAt, Reads: countedReading(a.Topic, stored[a.Topic], ahead.Events),
		})
	}
	return sinks, nil
}

// progress returns how far each store has been published, by service. A process whose relays publish
// reads it from them. Others read the relays' checkpoints from Kafka.
func (p *App) progress(ctx context.Context) (map[string]relay.Progress, error) {
	standby := func(r *relay.Relay) bool { return r.Progress().Standby }
	if len(p.relays) == 0 || slices.ContainsFunc(slices.Collect(maps.Values(p.relays)), standby) {
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

// viewSink returns the progress of a version of a view, by its watermarks and the ends of the log. If
// its server does not answer, the lag is still known, and needed most. A version that a replay fills
// is years behind by intention, so its lag in seconds does not count.
func viewSink(ctx context.Context, o *version) ([]telemetry.Sink, error) {
	sink := telemetry.Sink{Name: "view " + o.sink}
	if !o.filling.Load() {
		sink.Reads = readings(o.runner.Progress())
	}
	s, err := o.Status(ctx)
	if err != nil {
		return []telemetry.Sink{sink}, err
	}
	sink.Unit, sink.Count, sink.Lag, sink.AsOf = "documents", s.Documents, s.Lag, s.AsOf
	return []telemetry.Sink{sink}, nil
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
		read := telemetry.Reading{Topic: t.Topic, Next: t.Offsets, Ends: ends[t.Topic]}
		sinks = append(sinks, telemetry.Sink{Name: "table " + t.Name, Unit: "rows", Count: uint64(t.Rows),
			Lag: read.Events(), AsOf: t.AsOf, Reads: []telemetry.Reading{read}})
	}
	return sinks, nil
}
