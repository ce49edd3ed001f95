// This file connects the components with the metrics of the process. docs/metrics.md lists all of
// them.

package app

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/internal/telemetry"
	lakelanding "github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/streams"
)

// sinkMeter passes what a streams.Runtime does to the metrics. It implements streams.Meter.
type sinkMeter struct {
	flow  *telemetry.Flow
	sink  string
	feeds map[string]telemetry.Feed // by topic
	fresh func() bool
}

func (m sinkMeter) Applied(topic string, recorded time.Time) {
	if !m.fresh() {
		recorded = time.Time{}
	}
	m.feeds[topic].Applied(recorded, 1)
}
func (m sinkMeter) Failed(class string)              { m.flow.Failed(m.sink, class) }
func (m sinkMeter) DeadLetters(reason string, n int) { m.flow.DeadLetters(m.sink, reason, n) }
func (m sinkMeter) Rebalanced()                      { m.flow.Rebalanced(m.sink) }

// queues are the queues of the runtimes, by sink. Versions of views come and go.
type queues struct {
	mu  sync.Mutex
	all map[string]func() int
}

func (q *queues) add(sink string, queued func() int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all == nil {
		q.all = map[string]func() int{}
	}
	q.all[sink] = queued
}

func (q *queues) remove(sink string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.all, sink)
}

// present returns a copy.
func (q *queues) present() map[string]func() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.all)
}

// measureRuntime measures a runtime that has not been started. sink is its name in metrics and status.
// fresh reports whether somebody sees what it applies, so that its freshness counts.
func (p *App) measureRuntime(sink string, r *streams.Runtime, fresh func() bool) {
	m := sinkMeter{p.metrics.Flow(), sink, map[string]telemetry.Feed{}, fresh}
	for _, topic := range r.Topics() {
		m.feeds[topic] = m.flow.Feed(sink, topic)
	}
	m.flow.Expect(sink, streams.Classes(), streams.Reasons())
	r.Measure(m)
	p.queues.add(sink, r.Queued)
}

// measureQueues adds the metric of the queues of the runtimes.
func (p *App) measureQueues() {
	p.metrics.Values("millrace_sink_queued_records", "Records that were read and wait to be applied.", []string{"sink"},
		func(set func(float64, ...string)) {
			for sink, queued := range p.queues.present() {
				set(float64(queued()), sink)
			}
		})
}

// measureDependencies adds the metrics of the servers that this process depends on.
func (p *App) measureDependencies() {
	of := func(value func(dependency.State) float64) func(func(float64, ...string)) {
		return func(set func(float64, ...string)) {
			for _, s := range p.dependencies.States() {
				set(value(s), s.Name)
			}
		}
	}
	p.metrics.Values("millrace_dependency_breaker_state", "0 while calls to the server pass, 1 while some do, 2 while none does.",
		[]string{"dependency"}, of(func(s dependency.State) float64 { return float64(s.Breaker) }))
	p.metrics.Values("millrace_dependency_calls_in_progress", "Calls to the server that have no answer yet.",
		[]string{"dependency"}, of(func(s dependency.State) float64 { return float64(s.InFlight) }))
	p.metrics.Counts("millrace_dependency_calls_total", "Calls to the server, by outcome.",
		[]string{"dependency", "outcome"}, func(set func(float64, ...string)) {
			for _, s := range p.dependencies.States() {
				set(float64(s.Answered), s.Name, "answered")
				set(float64(s.Failed), s.Name, "failed")
				set(float64(s.GivenUp), s.Name, "given_up")
				set(float64(s.Rejected), s.Name, "rejected")
			}
		})
}

// readings returns how far a view or a process is in its topics.
func readings(topics []streams.TopicProgress) []telemetry.Reading {
	all := make([]telemetry.Reading, len(topics))
	for i, t := range topics {
		all[i] = telemetry.Reading{Topic: t.Topic, Next: t.Next, Ends: t.Ends}
	}
	return all
}

// countedReading returns how far a topic is with its store. Positions of stores have gaps, so it is
// counted in events, as one partition.
func countedReading(topic string, stored, ahead uint64) []telemetry.Reading {
	return []telemetry.Reading{{
		Topic: topic, Next: map[int32]int64{0: int64(stored - min(ahead, stored))}, Ends: map[int32]int64{0: int64(stored)},
	}}
}

// measureRelays adds the metrics of the relays.
func (p *App) measureRelays() {
	of := func(value func(relay.Progress) float64) func(func(float64, ...string)) {
		return func(set func(float64, ...string)) {
			for _, a := range p.modules.aggregates() {
				if r := p.relays[a.Name]; r != nil {
					set(value(r.Progress()), a.Topic)
				}
			}
		}
	}
	p.metrics.Counts("millrace_relay_stray_records_total", "Records on the topic that no relay wrote.", []string{"topic"},
		of(func(at relay.Progress) float64 { return float64(at.InvalidRecords) }))
	p.metrics.Values("millrace_relay_publishing", "1 while this process's relay of the topic publishes, else 0.",
		[]string{"topic"}, of(func(at relay.Progress) float64 {
			if at.Live {
				return 1
			}
			return 0
		}))
}

// measurePublished returns a function that measures the events that a relay has published.
func (p *App) measurePublished(topic string) func([]event.Event) {
	feed := p.metrics.Flow().Feed("topic "+topic, topic)
	return func(events []event.Event) {
		for _, e := range events {
			feed.Applied(e.RecordedAt, 1)
		}
	}
}

// landingMeter passes what landers do to the metrics. It implements lakelanding.Meter.
type landingMeter struct{ flow *telemetry.Flow }

func (m landingMeter) Landed(table, topic string, recorded time.Time, events uint64) {
	m.flow.Feed("table "+table, topic).Applied(recorded, events)
}
func (m landingMeter) Committed(table string, took time.Duration) { m.flow.Committed(table, took) }
func (m landingMeter) Catalog(op string, took time.Duration)      { m.flow.Catalog(op, took) }
func (m landingMeter) Failed(table, class string)                 { m.flow.Failed("table "+table, class) }

// measureLanding returns the meter of the landers.
func (p *App) measureLanding() lakelanding.Meter {
	m := landingMeter{p.metrics.Flow()}
	for _, t := range p.lake.Declared() {
		m.flow.Expect("table "+t.Name, lakelanding.Classes(), letterReasons)
	}
	return m
}

// countedLetters counts the dead letters that a component writes.
func (p *App) countedLetters(sink string, write func(context.Context, ...streams.DeadLetter) error,
) func(context.Context, ...streams.DeadLetter) error {
	return func(ctx context.Context, letters ...streams.DeadLetter) error {
		err := write(ctx, letters...)
		if err == nil {
			for _, l := range letters {
				p.metrics.Flow().DeadLetters(sink, letterReason(l.Reason), 1)
			}
		}
		return err
	}
}

// countedRows counts the dead letters of the landers, by table.
func (p *App) countedRows(write lakelanding.DeadLetterWriter) lakelanding.DeadLetterWriter {
	return func(ctx context.Context, records []lakelanding.DeadLetter) error {
		err := write(ctx, records)
		if err == nil {
			for _, r := range records {
				p.metrics.Flow().DeadLetters("table "+strings.TrimPrefix(r.Sink, "lake/"), letterReason(r.Reason), 1)
			}
		}
		return err
	}
}

// letterReasons are the results of letterReason.
var letterReasons = []string{reasonCopy, streams.ReasonNotAnEvent, streams.ReasonRefused}

// reasonCopy is the reason of a record that is a copy of an earlier one.
const reasonCopy = "copy"

// letterReason returns the class of the reason of a dead letter that no streams.Runtime wrote.
func letterReason(err error) string {
	switch {
	case errors.Is(err, event.ErrDuplicate):
		return reasonCopy
	case errors.Is(err, event.ErrNotEvent):
		return streams.ReasonNotAnEvent
	}
	return streams.ReasonRefused
}

// measureServers adds the metrics of the listeners. All of them are known before the first scrape.
func (p *App) measureServers() {
	p.metrics.Counts("millrace_shed_requests_total", "Requests that were refused because of load, by class.",
		[]string{"class"}, func(set func(float64, ...string)) {
			for _, c := range []server.Class{server.SQL, server.Query, server.Command} {
				shed := p.limiter.Shed(c)
				// SQL can be refused by the limiter, and by the slots of its caller.
				if c == server.SQL {
					shed += p.slots.Refused()
				}
				set(float64(shed), c.String())
			}
		})
	listener := []string{"listener"}
	p.metrics.Values("millrace_connections_open", "Open connections to a listener.", listener,
		func(set func(float64, ...string)) {
			for name, s := range p.connections {
				open, _, _ := s.Connections()
				set(float64(open), name)
			}
		})
	p.metrics.Counts("millrace_connections_refused_total", "Connections to a listener that were refused.", listener,
		func(set func(float64, ...string)) {
			for name, s := range p.connections {
				_, refused, _ := s.Connections()
				set(float64(refused), name)
			}
		})
	p.metrics.Counts("millrace_connections_evicted_total", "Connections to a listener that were closed for others.",
		listener, func(set func(float64, ...string)) {
			for name, s := range p.connections {
				_, _, evicted := s.Connections()
				set(float64(evicted), name)
			}
		})
}
