package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/readmodels/versions"
)

// Rebuild deletes and recreates a service's topic, and drops the views and tables that are derived
// from it. The next start publishes the store again and fills them. No other process of the system
// may run. The topic of positions is recreated as well, so the checkpoints of all relays are lost.
// A relay without a checkpoint compares its whole topic with its store. report is called with each
// completed step.
func Rebuild(
	ctx context.Context, cfg config.Config, service string, log *slog.Logger, report func(what string),
) (err error) {
	// Find the aggregate, and collect the names for the error.
	var services []string
	var a event.Aggregate
	for _, each := range Shop().aggregates() {
		services = append(services, each.Service)
		if each.Service == service {
			a = each
		}
	}
	if a.Topic == "" {
		return fmt.Errorf("unknown service %q: want one of %s", service, strings.Join(services, ", "))
	}
	// No roles: nothing runs, but the connections and the shutdown are those of a process.
	p := newApp(Shop(), cfg, nil, log)
	defer func() { err = errors.Join(err, p.Close()) }()
	// If a server is embedded, its files are in the data folder, and the lock shows whether a
	// process runs.
	if len(embedded(cfg, wanted([]Role{Relay, Views, Lake, Features}))) > 0 {
		if err := p.startFolder(ctx); err != nil {
			return err
		}
	}
	// This also starts the embedded broker, if no brokers are configured.
	if err := p.startKafka(ctx); err != nil {
		return err
	}
	if cfg.Kafka.Brokers != "" { // an embedded broker is protected by the lock on the folder
		active, err := p.admin.ActiveGroups(ctx, "millrace.")
		if err != nil {
			return err
		}
		if len(active) > 0 {
			return fmt.Errorf("views or landers are running (consumer groups %s): stop every process of Millrace; one that was killed leaves its group within a minute",
				strings.Join(active, ", "))
		}
		// A relay is not in a consumer group.
		if err := p.stopRelays(ctx); err != nil {
			return err
		}
	}

	// Readers are dropped before the topic. If this is interrupted in between, they fill again from
	// the old topic, and the command can be repeated.
	if err := p.dropReaders(ctx, a, report); err != nil {
		return err
	}
	topics := retained(cfg.Kafka, relay.Topics([]event.Aggregate{a}, int32(cfg.Kafka.Partitions)))
	if err := p.admin.RecreateTopics(ctx, topics...); err != nil {
		return err
	}
	report("topic " + a.Topic + " is empty; the next start publishes the store of " + a.Service + " to it")
	return nil
}

// relayWait is how long a relay that was just stopped may hold its turn.
const relayWait = 5 * time.Second

// stopRelays takes the turn of the relays, until the process ends, and fails if another process
// publishes. Then it ends the transactions of relays that were killed.
func (p *App) stopRelays(ctx context.Context) error {
	for _, a := range p.modules.aggregates() {
		if err := p.takeTurn(ctx, a); err != nil {
			return err
		}
		// The same id as in startRelays. With real brokers it has no suffix.
		producer, err := kafka.NewTransactionalProducer(p.kafka, "millrace-relay-"+a.Service)
		if err != nil {
			return err
		}
		err = producer.Init(ctx)
		producer.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// takeTurn takes the turn of a service's relay, if relays take turns.
func (p *App) takeTurn(ctx context.Context, a event.Aggregate) error {
	if p.cfg.Store.Postgres == "" {
		return nil
	}
	store, err := p.openStore(ctx, a)
	if err != nil {
		return fmt.Errorf("store of %s: %w", a.Service, err)
	}
	p.onStop(store.Close)
	hold := turns(store)
	if hold == nil {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, relayWait)
	defer cancel()
	release, err := hold(waiting)
	if waiting.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("a relay publishes the events of %s: stop every process of Millrace", a.Service)
	}
	if err != nil {
		return err
	}
	p.onStop(func() error {
		release()
		return nil
	})
	return nil
}

// sinks returns the sinks of all versions of a view.
func (v View) sinks(ctx context.Context, s *Sinks) ([]string, error) {
	state := versions.Initial()
	if v.Versions != nil {
		store, err := v.Versions(ctx, s)
		if err != nil {
			return nil, err
		}
		if state, err = (versions.Registry{Store: store, View: v.Name}).Load(ctx); err != nil {
			return nil, err
		}
	}
	all := make([]string, len(state.Versions))
	for i, version := range state.Versions {
		all[i] = versions.Sink(v.Name, version.Name)
	}
	return all, nil
}

// dropReaders drops the views, the features and the tables that are derived from an aggregate's topic.
func (p *App) dropReaders(ctx context.Context, a event.Aggregate, report func(string)) error {
	for _, v := range p.modules.viewsOf(a) {
		sinks, err := v.sinks(ctx, p.viewSinks)
		if err != nil {
			return err
		}
		for _, sink := range sinks {
			if err := v.Drop(ctx, p.viewSinks, sink); err != nil {
				return err
			}
			report("view " + sink + " is empty")
		}
	}
	if err := p.dropHistory(ctx, a, report); err != nil {
		return err
	}
	where, err := LakeConfig(p.cfg, p.log)
	if err != nil {
		return err
	}
	l, err := lake.Open(ctx, where)
	if err != nil {
		return err
	}
	// Report what was dropped before an error, too: it is gone.
	dropped, err := l.DropFedBy(ctx, a.Topic)
	for _, name := range dropped {
		report("table " + name + " is dropped")
	}
	return errors.Join(err, l.Close())
}
