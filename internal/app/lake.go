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

// LakeConfig says where the lake is: on the servers that the configuration names, else in the data folder.
func LakeConfig(c config.Config, log *slog.Logger) (lake.Config, error) {
	out := lake.Config{
		Warehouse: cmp.Or(c.Lake.Warehouse, c.Path("lake", "warehouse")), Catalog: cmp.Or(c.Lake.Catalog, c.Path("lake", "catalog.db")),
		Sync:   c.Durability == "power-loss",
		S3:     lake.S3{Endpoint: c.Lake.S3.Endpoint, Region: c.Lake.S3.Region, AccessKey: c.Lake.S3.AccessKey},
		Tables: Shop().tables(),
		Logger: log,
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

func (p *App) startLake(ctx context.Context) error {
	c, err := LakeConfig(p.cfg, p.log)
	if err != nil {
		return err
	}
	c.Tables = p.modules.tables()
	c.ReadOnly = !p.wanted[landing] && !p.has(Iceberg)
	l, err := openLake(ctx, c)
	if err != nil {
		return err
	}
	p.lake = l
	p.onStop(l.Close)
	return nil
}

// openLake waits for a lake that another process is about to make.
func openLake(ctx context.Context, c lake.Config) (*lake.Lake, error) {
	const patience, step = time.Minute, 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for told := false; ; told = true {
		l, err := lake.Open(ctx, c)
		if err == nil || !c.ReadOnly || !errors.Is(err, lake.ErrNoLake) {
			return l, err
		}
		if !told {
			c.Logger.Warn("waiting for the lake, which a process with the role lake makes", "error", err)
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (p *App) startLanding(context.Context) error {
	parking := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		parking.Close()
		return nil
	})
	instance := ""
	if p.cfg.Kafka.Brokers == "" {
		instance = "embedded" // there is one process at an embedded broker
	}
	run := lakelanding.Config{
		Instance: instance,
		Brokers:  strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder, Park: park(parking),
		CommitInterval: p.cfg.Lake.CommitInterval, CommitBytes: p.cfg.Lake.CommitBytes, Maintenance: p.upkeep(),
	}
	p.metrics.Labelled("millrace_table_stopped", "1 for each table that this process cannot land.", []string{"table"}, func(is func(labels ...string)) {
		for _, fault := range p.lake.Stopped() {
			is(fault.Table)
		}
	})
	p.background("lake", func(ctx context.Context) error { return p.land(ctx, run) })
	return nil
}

// How often the tables are looked at where none can be landed.
const landAgain = 30 * time.Second

// land lands the tables until ctx is done. Where none of them can be landed, the process serves on: status, readiness
// and a metric say so.
func (p *App) land(ctx context.Context, run lakelanding.Config) error {
	for {
		err := lakelanding.Run(ctx, p.lake, run)
		if broken := (*faults.TableError)(nil); !errors.As(err, &broken) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(landAgain):
		}
	}
}

// upkeep is how the process that lands keeps the tables small; nil where it does not.
func (p *App) upkeep() *maintenance.Config {
	m := p.cfg.Lake.Maintenance
	if m.Every == 0 {
		return nil
	}
	return &maintenance.Config{
		Every: m.Every, TargetBytes: m.TargetBytes, KeepAge: m.Keep, OrphanAge: m.OrphanAge, Memory: m.Memory, Share: m.Share, Logger: p.log.With("part", "maintenance"),
	}
}

func park(to *streams.DeadLetters) lakelanding.Parker {
	return func(ctx context.Context, records []lakelanding.Parked) error {
		parked := make([]streams.DeadLetter, 0, len(records))
		for _, r := range records {
			parked = append(parked, streams.DeadLetter{
				Sink: r.Sink, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
				Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: r.Reason,
			})
		}
		return to.Write(ctx, parked...)
	}
}
