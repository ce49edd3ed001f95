package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/faults"
	lakelanding "github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/streams"
)

// LakeConfig returns the location of the lake: the configured servers, or else the data folder. The
// commands under "millrace lake" and the roles share it, so both find the same tables.
func LakeConfig(c config.Config, log *slog.Logger) (lake.Config, error) {
	out := lake.Config{
		Warehouse: cmp.Or(c.Lake.Warehouse, c.Path("lake", "warehouse")),
		Catalog:   cmp.Or(c.Lake.Catalog, c.Path("lake", "catalog.db")),
		Sync:      c.Durability == "power-loss",
		S3:        lake.S3{Endpoint: c.Lake.S3.Endpoint, Region: c.Lake.S3.Region, AccessKey: c.Lake.S3.AccessKey},
		Tables:    Shop().tables(),
		Logger:    log,
	}
	var err error
	if out.S3.SecretKey, err = c.Lake.S3.SecretKey.Reveal(""); err != nil {
		return out, fmt.Errorf("lake.s3.secret_key: %w", err)
	}
	if out.CatalogPassword, err = c.Lake.Password.Reveal(""); err != nil {
		return out, fmt.Errorf("lake.password: %w", err)
	}
	return out, nil
}

// startLake opens the lake with the tables of this process's modules.
func (p *App) startLake(ctx context.Context) error {
	c, err := LakeConfig(p.cfg, p.log)
	if err != nil {
		return err
	}
	c.S3.Dependency = p.dependencies.Named("s3")
	// Tests have other modules than the shop's.
	c.Tables = p.modules.tables()
	// Processes that neither land nor serve the catalog open the lake read-only, and never create
	// it.
	c.ReadOnly = !p.wanted[landing] && !p.has(Iceberg)
	l, err := openLake(ctx, c)
	if err != nil {
		return err
	}
	p.lake = l
	p.onStop(l.Close)
	return nil
}

// openLake opens the lake. If it may only read, it waits up to a minute for another process to
// create the lake.
func openLake(ctx context.Context, c lake.Config) (*lake.Lake, error) {
	const timeout, interval = time.Minute, 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// warned limits the warning to one.
	for warned := false; ; warned = true {
		l, err := lake.Open(ctx, c)
		if err == nil || !c.ReadOnly || !errors.Is(err, lake.ErrNoLake) {
			return l, err
		}
		if !warned {
			c.Logger.Warn("the lake does not exist yet; waiting for a process with the role lake to create it",
				"error", err)
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// startLanding runs the landers, and turns records that cannot be rows into dead letters. One group
// of landers lands all tables of the modules. A broken table stops alone, and the others continue.
func (p *App) startLanding(context.Context) error {
	deadLetters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		deadLetters.Close()
		return nil
	})
	// The instance is the member's static name in its consumer group. With it, a restart takes over
	// the partitions at once.
	instance := ""
	if p.cfg.Kafka.Brokers == "" {
		instance = "embedded" // an embedded broker has exactly one process
	}
	// Every process with the role lake runs landers. They share the partitions as one group.
	run := lakelanding.Config{
		Instance: instance,
		Brokers:  strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder,
		WriteDeadLetters: p.countedRows(deadLetterWriter(deadLetters)), Meter: p.measureLanding(),
		CommitInterval: p.cfg.Lake.CommitInterval, CommitBytes: p.cfg.Lake.CommitBytes,
		Maintenance: p.maintenanceConfig(), Maintains: p.maintains, Tracer: p.tracer,
	}
	// The landers report stopped tables to the lake. The metric exports them.
	p.metrics.Labelled("millrace_table_stopped", "1 for each table that this process cannot land.", []string{"table"},
		func(is func(labels ...string)) {
			for _, fault := range p.lake.Stopped() {
				is(fault.Table)
			}
		})
	p.background("lake", func(ctx context.Context) error { return p.land(ctx, run) })
	return nil
}

// landRetryDelay is the pause before landing is tried again when no table can be landed.
const landRetryDelay = 30 * time.Second

// land lands the tables until ctx is done. If no table can be landed, the process keeps serving,
// and status, readiness and a metric report the fault.
func (p *App) land(ctx context.Context, run lakelanding.Config) error {
	for {
		err := lakelanding.Run(ctx, p.lake, run)
		if broken := (*faults.TableError)(nil); !errors.As(err, &broken) {
			return err
		}
		// An operator may repair the table meanwhile, so try again.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(landRetryDelay):
		}
	}
}

// maintenanceConfig returns the configuration of table maintenance, or nil if it is off.
func (p *App) maintenanceConfig() *maintenance.Config {
	m := p.cfg.Lake.Maintenance
	if m.Every == 0 {
		return nil
	}
	// Fields that have no setting keep the defaults of package maintenance.
	return &maintenance.Config{
		Every: m.Every, TargetBytes: m.TargetBytes, KeepAge: m.Keep, OrphanAge: m.OrphanAge,
		Memory: m.Memory, DutyCycle: m.Share, Logger: p.log.With("part", "maintenance"),
	}
}

// deadLetterWriter returns a function that writes records which cannot be rows to the dead letter
// topic.
func deadLetterWriter(to *streams.DeadLetters) lakelanding.DeadLetterWriter {
	return func(ctx context.Context, records []lakelanding.DeadLetter) error {
		letters := make([]streams.DeadLetter, 0, len(records))
		for _, r := range records {
			letters = append(letters, streams.DeadLetter{
				Sink: r.Sink, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
				Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: r.Reason,
			})
		}
		return to.Write(ctx, letters...)
	}
}
