package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	lakelanding "github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/streams"
)

// Landing is one table that is landed by a process of its own.
type Landing struct {
	// Table returns the declaration of the table. The client is that of the configured schema
	// registry, or nil.
	Table   func(ctx context.Context, schemas *registry.Client) (declare.Table, error)
	Landers int // number of concurrent landers
	// Until ends the landing once the table contains what was on the topic when it began. Otherwise
	// landing continues until ctx is done.
	Until bool
	// Progress is called with the number of those records that are in the table, and of all of
	// them. It may be nil.
	Progress func(have, of int64)
}

// Land lands any one topic in one table, with the configured Kafka and lake. It starts only what
// landing needs, without stores, views or listeners. A broken table is an error here, because the
// process has no other work.
func Land(ctx context.Context, cfg config.Config, l Landing, log *slog.Logger) (err error) {
	if cfg.Kafka.Brokers == "" {
		return errors.New("kafka.brokers is empty: set it in millrace.yaml or MILLRACE_KAFKA_BROKERS to the brokers that have " +
			"the topic; `millrace status` has the address of the broker of a running `millrace up`")
	}
	// No modules and no roles: this process lands one table and serves nothing.
	p := newApp(Modules{}, cfg, nil, log)
	defer func() { err = errors.Join(err, p.Close()) }()
	access, err := kafkaAccess(cfg.Kafka)
	if err != nil {
		return err
	}
	p.kafka = kafka.Config{Brokers: cfg.Kafka.Brokers, ClientID: "millrace", Security: access,
		Replicas: cfg.Kafka.Replicas, Logger: log}
	if err := p.startRegistry(); err != nil {
		return err
	}
	// Read the configuration of the lake before the registry is contacted, so that errors come
	// first.
	where, err := LakeConfig(cfg, log)
	if err != nil {
		return err
	}
	table, err := p.describe(ctx, l)
	if err != nil {
		return err
	}
	// A mistyped name must not become a table.
	if err := p.hasTopic(ctx, table.Topic); err != nil {
		return err
	}
	// Only this table. The tables of the shop are landed by the role lake.
	where.Tables = []declare.Table{table}
	if p.lake, err = lake.Open(ctx, where); err != nil {
		return err
	}
	p.onStop(p.lake.Close)
	deadLetters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		deadLetters.Close()
		return nil
	})

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return lakelanding.Run(ctx, p.lake, lakelanding.Config{
			Brokers: strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder,
			WriteDeadLetters: deadLetterWriter(deadLetters),
			CommitInterval:   cfg.Lake.CommitInterval, CommitBytes: cfg.Lake.CommitBytes,
			Maintenance: p.maintenanceConfig(), Landers: l.Landers,
		})
	})
	// watch cancels ctx when it returns, which ends the landers.
	g.Go(func() error {
		defer stop()
		return p.watch(ctx, l, table.Topic)
	})
	return g.Wait()
}

// registryRetryDelay is the pause between two requests to a schema registry that does not answer.
const registryRetryDelay = 2 * time.Second

// describe returns the table's declaration. It retries while the schema registry is unavailable.
func (p *App) describe(ctx context.Context, l Landing) (declare.Table, error) {
	for {
		t, err := l.Table(ctx, p.registry)
		if !errors.Is(err, registry.ErrUnavailable) {
			return t, err
		}
		p.log.Warn("waiting for the schema registry", "error", err)
		select {
		case <-ctx.Done():
			return t, err
		case <-time.After(registryRetryDelay):
		}
	}
}

// watchEvery is the interval between polls of a landing's progress.
const watchEvery = 200 * time.Millisecond

// hasTopic returns an error if the brokers do not have a topic, or do not answer.
func (p *App) hasTopic(ctx context.Context, topic string) error {
	// A client of its own: Land starts no admin client for the process.
	admin, err := kafka.NewAdmin(p.kafka)
	if err != nil {
		return err
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err = admin.Topic(ctx, topic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return fmt.Errorf("the brokers at %s have no topic %q: create it, or correct --topic: %w",
			p.kafka.Brokers, topic, err)
	}
	return err
}

// watch reports progress, and returns when the landing is to end. It fixes the ends of the topic
// once: records that arrive later do not extend a landing with Until. A temporary error of reading
// offsets is not one of the landing, so it is logged and retried.
func (p *App) watch(ctx context.Context, l Landing, topic string) error {
	var ends map[int32]int64
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if ends == nil {
			admin, err := kafka.NewAdmin(p.kafka)
			if err != nil {
				return err
			}
			all, err := admin.EndOffsets(ctx, topic)
			admin.Close()
			// Brokers may be unavailable for a while; the landers wait for them, too.
			if errors.Is(err, kafka.ErrStalled) {
				p.log.Warn("cannot read the end offsets of the topic; retrying", "topic", topic, "error", err)
				continue
			}
			if err != nil {
				return fmt.Errorf("read the end offsets of topic %s: %w", topic, err)
			}
			ends = all
		}
		have, err := p.lake.Applied(ctx, topic)
		if err != nil {
			p.log.Warn("cannot read the offsets of the table; retrying", "error", err)
			continue
		}
		// Sums over all partitions, for the progress bar.
		var at, of int64
		complete := true
		for partition, end := range ends {
			// Offsets count from 0, so the sum includes records that retention has deleted.
			of += end
			at += min(have[partition], end)
			complete = complete && have[partition] >= end
		}
		if l.Progress != nil {
			l.Progress(at, of)
		}
		if complete && l.Until {
			return nil
		}
	}
}
