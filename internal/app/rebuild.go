package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/bleve"
	"github.com/millrace/millrace/readmodels/catalog/elasticsearch"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

// Rebuild deletes and recreates a service's topic, and drops the views and tables that are read from it: the next start
// publishes the store again, and fills them from there. Nothing else of the system may run. The positions of all relays
// go too; without one, a relay compares its whole topic with its store. It tells of each thing that it did.
func Rebuild(ctx context.Context, cfg config.Config, service string, log *slog.Logger, tell func(what string)) (err error) {
	var services []string
	var a event.Aggregate
	for _, each := range event.Aggregates() {
		services = append(services, each.Service)
		if each.Service == service {
			a = each
		}
	}
	if a.Topic == "" {
		return fmt.Errorf("no service is called %q: name one of %s", service, strings.Join(services, ", "))
	}
	p := &App{cfg: cfg, log: log, addresses: map[string]string{}, metrics: telemetry.New(), failed: make(chan struct{})}
	defer func() { err = errors.Join(err, p.Close()) }()
	if len(embedded(cfg, wanted([]Role{Relay, Views, Lake}))) > 0 {
		if err := p.startFolder(ctx); err != nil {
			return err
		}
	}
	if err := p.startKafka(ctx); err != nil {
		return err
	}
	if cfg.Kafka.Brokers != "" { // else the folder is ours alone
		active, err := p.admin.ActiveGroups(ctx, "millrace.")
		if err != nil {
			return err
		}
		if len(active) > 0 {
			return fmt.Errorf("views or landers are running (consumer groups %s): stop every process of Millrace; one that was killed leaves its group within a minute",
				strings.Join(active, ", "))
		}
		if err := p.fenceRelays(ctx); err != nil {
			return err
		}
	}

	// What is read goes first: should this end in between, it is filled again from what is there, and can be run again.
	if err := p.dropReaders(ctx, a, tell); err != nil {
		return err
	}
	if err := p.admin.RemakeTopics(ctx, relay.Topics([]event.Aggregate{a}, int32(cfg.Kafka.Partitions))...); err != nil {
		return err
	}
	tell("topic " + a.Topic + " is empty; the next start publishes the store of " + a.Service + " to it")
	return nil
}

// fenceRelays ends relays that run elsewhere: each has its transactional id taken away.
func (p *App) fenceRelays(ctx context.Context) error {
	for _, a := range event.Aggregates() {
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

func (p *App) dropReaders(ctx context.Context, a event.Aggregate, tell func(string)) error {
	switch a.Name {
	case event.Order.Name:
		if err := p.startRedis(ctx); err != nil {
			return err
		}
		if err := p.redis.Documents(orderstatus.Name).Drop(ctx); err != nil {
			return err
		}
		tell("view " + orderstatus.Name + " is empty")
	case event.Product.Name:
		if err := p.dropIndex(ctx); err != nil {
			return err
		}
		tell("view " + catalog.Name + " is empty")
	}
	where, err := LakeConfig(p.cfg, p.log)
	if err != nil {
		return err
	}
	l, err := lake.Open(ctx, where)
	if err != nil {
		return err
	}
	dropped, err := l.DropFedBy(ctx, a.Topic)
	for _, name := range dropped {
		tell("table " + name + " is dropped")
	}
	return errors.Join(err, l.Close())
}

func (p *App) dropIndex(ctx context.Context) error {
	if p.cfg.Search.Elasticsearch == "" {
		return bleve.Drop(p.cfg.Path("search"))
	}
	c, err := elasticsearchConfig(p.cfg.Search, p.log)
	if err != nil {
		return err
	}
	return elasticsearch.Drop(ctx, c)
}
