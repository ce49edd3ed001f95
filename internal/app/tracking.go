package app

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/streams"
)

// startTracking starts the intake of tracking clients. It fails if the write keys or the tracking
// plan cannot be read. A log that is not available is no failure: clients are asked to send again.
func (p *App) startTracking(context.Context) error {
	c := p.cfg.Tracking
	sources := tracking.DemoSources()
	if c.Keys != "" {
		text, err := os.ReadFile(c.Keys)
		if err == nil {
			sources, err = tracking.ParseSources(text)
		}
		if err != nil {
			return fmt.Errorf("tracking.keys: %s: %w", c.Keys, err)
		}
	}
	plan, err := p.trackingPlan()
	if err != nil {
		return err
	}
	letters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		letters.Close()
		return nil
	})
	p.tracking, err = tracking.New(tracking.Config{
		Kafka: p.kafka, Sources: sources, Plan: plan, Requests: c.Requests, IDs: c.IDs, Logger: p.log,
		Consent:          tracking.Consent{Purposes: c.Consent, Denied: c.ConsentDefault == "denied"},
		WriteDeadLetters: trackingLetters(letters),
	})
	if err != nil {
		return fmt.Errorf("tracking: %w", err)
	}
	p.background("tracking", p.tracking.Run)
	for _, m := range []struct {
		name, help string
		read       func(tracking.Stats) int64
	}{
		{"accepted_events", "Events that were written to the log, since the start.", func(s tracking.Stats) int64 { return s.Accepted }},
		{"duplicate_events", "Copies of earlier events, since the start.", func(s tracking.Stats) int64 { return s.Duplicates }},
		{"dead_letters", "Events that became dead letters, since the start.", func(s tracking.Stats) int64 { return s.DeadLetters }},
		{"dropped_events", "Events that were dropped for lack of consent, since the start.", func(s tracking.Stats) int64 { return s.Dropped }},
		{"rejected_requests", "Requests that were rejected (4xx), since the start.", func(s tracking.Stats) int64 { return s.Rejected }},
		{"overloaded_requests", "Requests that were refused because of load (429), since the start.",
			func(s tracking.Stats) int64 { return s.Overloaded }},
		{"unavailable_requests", "Requests that were refused because the log was not available (503), since the start.",
			func(s tracking.Stats) int64 { return s.Unavailable }},
		{"remembered_ids", "Ids that are remembered to recognise copies.",
			func(s tracking.Stats) int64 { return int64(s.IDs) }},
	} {
		p.metrics.Gauge("millrace_tracking_"+m.name, m.help,
			func() float64 { return float64(m.read(p.tracking.Stats())) })
	}
	return nil
}

// serveTracking serves the intake. Pages of other sites send events, so it has its own check of
// origins, and no check of the host name: there is nothing to read.
func (p *App) serveTracking() error {
	return p.serveBodies("tracking", p.tracking.Handler(), func(h http.Handler) http.Handler { return h })
}

// trackingLetters returns a function that writes events which the intake does not accept to the
// dead letter topic. They have no offset, because they were never on a topic, so the sink contains
// the id of the event.
func trackingLetters(to *streams.DeadLetters) func(context.Context, []tracking.DeadLetter) error {
	return func(ctx context.Context, events []tracking.DeadLetter) error {
		letters := make([]streams.DeadLetter, 0, len(events))
		for _, e := range events {
			letters = append(letters, streams.DeadLetter{
				Sink: "tracking/" + e.Source + "/" + e.ID.String(), Topic: event.Behavior.Topic, Partition: -1, Offset: -1,
				Key: []byte(e.Key), Value: e.Value, Reason: e.Reason,
			})
		}
		return to.Write(ctx, letters...)
	}
}

// trackingSinks returns what status shows of the intake of this process.
func (p *App) trackingSinks() []telemetry.Sink {
	s := p.tracking.Stats()
	return []telemetry.Sink{
		{Name: "tracking accepted", Unit: "events", Count: uint64(s.Accepted)},
		{Name: "tracking duplicates", Unit: "events", Count: uint64(s.Duplicates)},
		{Name: "tracking dead letters", Unit: "events", Count: uint64(s.DeadLetters)},
		{Name: "tracking rejected", Unit: "requests", Count: uint64(s.Rejected)},
	}
}
