package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// startStores opens the event store of each service.
func (p *App) startStores(ctx context.Context) error {
	for _, a := range p.modules.aggregates() {
		store, err := p.openStore(ctx, a)
		if err != nil {
			return fmt.Errorf("store of %s: %w", a.Service, err)
		}
		p.stores[a.Name] = store
		p.onStop(store.Close)
	}
	return nil
}

// storesByService returns the stores that this process has opened. It is empty in a process without
// stores, which cannot check the signatures of seals.
func (p *App) storesByService() map[string]eventstore.Store {
	stores := map[string]eventstore.Store{}
	for _, a := range p.modules.aggregates() {
		if s := p.stores[a.Name]; s != nil {
			stores[a.Service] = s
		}
	}
	return stores
}

// openStore opens the store of one service: a file of SQLite, or a schema in PostgreSQL.
func (p *App) openStore(ctx context.Context, a event.Aggregate) (eventstore.Store, error) {
	if p.cfg.Store.Postgres == "" {
		if err := os.MkdirAll(p.cfg.Path("store"), 0o750); err != nil {
			return nil, err
		}
		// One file per service, so that services do not wait for each other's writes.
		return sqlite.Open(ctx, p.cfg.Path("store", a.Service+".db"), a)
	}
	// One schema per service, so that each service can have a role without access to the others.
	conn, password, err := storeAccess(p.cfg.Store, a)
	if err != nil {
		return nil, err
	}
	return postgres.Open(ctx, conn, a, postgres.WithPassword(password), postgres.WithLogger(p.log))
}

// storeAccess returns the connection string and the password of a service's store.
func storeAccess(c config.Store, a event.Aggregate) (conn, password string, err error) {
	if password, err = c.Password.Reveal(a.Service); err != nil {
		return "", "", fmt.Errorf("store.password: %w", err)
	}
	return strings.ReplaceAll(c.Postgres, "{service}", a.Service), password, nil
}

// Migrate migrates the schemas of all event stores to this version, as the configured user. It
// calls report for each.
func Migrate(ctx context.Context, c config.Config, report func(service string)) error {
	if c.Store.Postgres == "" {
		return errors.New("store.postgres is empty: embedded stores are migrated at start")
	}
	for _, a := range Shop().aggregates() {
		conn, password, err := storeAccess(c.Store, a)
		if err != nil {
			return err
		}
		if err := postgres.Migrate(ctx, conn, a, postgres.WithPassword(password)); err != nil {
			return err
		}
		report(a.Service)
	}
	return nil
}

// startRelays starts a relay for each service. Records on the topics that no relay wrote become
// dead letters. Relays of other processes take turns with it, service by service.
func (p *App) startRelays(context.Context) error {
	deadLetters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		deadLetters.Close()
		return nil
	})
	p.measureRelays()
	for _, a := range p.modules.aggregates() {
		p.metrics.Flow().Expect("topic "+a.Topic, nil, []string{streams.ReasonNotAnEvent})
		// nil: the topic has plain Protobuf values.
		encoder, err := p.encoder(a)
		if err != nil {
			return err
		}
		r, err := relay.New(relay.Config{
			Store: p.stores[a.Name], Aggregate: a, Kafka: p.kafka, Encoder: encoder, Logger: p.log, Tracer: p.tracer,
			DeadLetter: func(ctx context.Context, m kafka.Message, reason error) error {
				p.metrics.Flow().DeadLetters("topic "+a.Topic, streams.ReasonNotAnEvent, 1)
				return deadLetters.Write(ctx, streams.DeadLetter{
					Sink: "relay/" + a.Service, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset,
					Key: m.Key, Value: m.Value, Headers: m.Headers, Reason: reason,
				})
			},
			Published:       p.measurePublished(a.Topic),
			TransactionalID: "millrace-relay-" + a.Service + p.boot, Hold: turns(p.stores[a.Name]),
		})
		if err != nil {
			return err
		}
		p.relays[a.Name] = r
		p.background("relay of "+a.Service, func(ctx context.Context) error { return p.runRelay(ctx, r) })
	}
	return nil
}

// turns returns how the relays of a store take turns. It is nil for an embedded store, which no other
// process can open.
func turns(store eventstore.Store) func(context.Context) (func(), error) {
	shared, ok := store.(interface {
		Hold(ctx context.Context, name string) (release func(), err error)
	})
	if !ok {
		return nil
	}
	return func(ctx context.Context) (func(), error) { return shared.Hold(ctx, "relay") }
}

// runRelay runs a relay until ctx is done. With an embedded broker, no other process can have its
// transactional id, because this process has locked the data folder. "Fenced" then only means that
// the transaction timed out, for example while the machine slept. So the relay starts again.
func (p *App) runRelay(ctx context.Context, r *relay.Relay) error {
	for {
		// Run returns only for a permanent error, or when ctx is done.
		err := r.Run(ctx)
		if p.boot == "" || !errors.Is(err, relay.ErrFenced) {
			return err
		}
		p.log.Warn("relay lost its transaction; restarting it", "reason", err)
	}
}
