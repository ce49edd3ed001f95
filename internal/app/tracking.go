package app

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/refusals"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/readmodels/customer360"
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
		Consent: tracking.Consent{
			Purposes: c.Consent, Denied: c.ConsentDefault == "denied", Refusals: p.customerRefusals(),
		},
		WriteDeadLetters: trackingLetters(letters),
	})
	if err != nil {
		return fmt.Errorf("tracking: %w", err)
	}
	p.background("tracking", p.tracking.Run)
	p.metrics.Counts("millrace_tracking_events_total",
		"Events of tracking clients: written to the log (accepted), copies of earlier ones (duplicate), without consent "+
			"(dropped), and dead letters (dead_letter).",
		[]string{"outcome"}, func(set func(float64, ...string)) {
			s := p.tracking.Stats()
			set(float64(s.Accepted), "accepted")
			set(float64(s.Duplicates), "duplicate")
			set(float64(s.Dropped), "dropped")
			set(float64(s.DeadLetters), "dead_letter")
		})
	p.metrics.Counts("millrace_tracking_refused_requests_total",
		"Requests of tracking clients that got 4xx (rejected), 429 (overloaded) or 503 (unavailable).",
		[]string{"reason"}, func(set func(float64, ...string)) {
			s := p.tracking.Stats()
			set(float64(s.Rejected), "rejected")
			set(float64(s.Overloaded), "overloaded")
			set(float64(s.Unavailable), "unavailable")
		})
	p.metrics.Gauge("millrace_tracking_remembered_ids", "Ids that are remembered to recognise copies.",
		func() float64 { return float64(p.tracking.Stats().IDs) })
	return nil
}

// customerRefusals returns which customers refuse a purpose of tracking.consent. It is nil if none of
// its purposes is one that customers consent to, so the topic of customers is read only if it matters.
func (p *App) customerRefusals() tracking.Refusals {
	purposes := map[string]customerv1.ConsentPurpose{}
	for name := range p.cfg.Tracking.Consent {
		if purpose, err := customer360.ParsePurpose(name); err == nil { // else it is a purpose of events only
			purposes[name] = purpose
		}
	}
	if len(purposes) == 0 {
		return nil
	}
	if p.followRefusals(); p.refusals == nil {
		return nil
	}
	return refusalsByName{p.refusals, purposes}
}

// refusalsByName are the refusals of purposes with a name in tracking.consent.
type refusalsByName struct {
	*refusals.Follower
	purposes map[string]customerv1.ConsentPurpose
}

// Refuses implements tracking.Refusals.
func (r refusalsByName) Refuses(user, purpose string) bool {
	known, ok := r.purposes[purpose]
	return ok && r.Follower.Refuses(known, user)
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
