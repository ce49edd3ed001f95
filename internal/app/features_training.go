package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/history"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/refusals"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/load"
)

// Where the facts of a training set are.
const (
	FromLog        = "log"        // the topics of the events
	FromClickHouse = "clickhouse" // the tables that the role features fills
)

// TrainingFacts opens the facts of training sets. They are those of a running system, which this
// process only reads.
func TrainingFacts(cfg config.Config, from string, groups []*features.Group, log *slog.Logger) (
	facts training.Facts, closeFacts func() error, err error) {
	switch from {
	case FromClickHouse:
		return historyFacts(cfg, groups, log)
	case FromLog:
		return logFacts(cfg, log)
	}
	return nil, nil, fmt.Errorf("from %q: want %s or %s", from, FromClickHouse, FromLog)
}

// historyFacts returns the facts in ClickHouse: on the configured server, or on the engine of the system
// that runs in the data folder.
func historyFacts(cfg config.Config, groups []*features.Group, log *slog.Logger) (training.Facts, func() error, error) {
	var store *clickhouse.Store
	var err error
	if cfg.ClickHouse.URL != "" {
		store, err = OpenStore(cfg.ClickHouse, nil, nil)
	} else {
		var engine clickhouse.Server
		if engine, err = runningEngine(cfg); err == nil {
			store, err = clickhouse.OpenStore(clickhouse.StoreConfig{Server: engine})
		}
	}
	if err != nil {
		return nil, nil, err
	}
	h, err := history.Open(history.Config{Store: store, Groups: groups, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return &training.ClickHouse{Store: store, Layout: h}, store.Close, nil
}

// logFacts returns the facts on the log.
func logFacts(cfg config.Config, log *slog.Logger) (training.Facts, func() error, error) {
	p, err := openLog(cfg, log)
	if err != nil {
		return nil, nil, err
	}
	return p.logOfFacts(), p.Close, nil
}

// openLog connects to the log of a system, which this process only reads. Without a store, records are
// checked by the seals that the system announces.
func openLog(cfg config.Config, log *slog.Logger) (_ *App, err error) {
	if cfg.Kafka.Brokers == "" {
		return nil, errors.New("kafka.brokers is empty: set it in millrace.yaml or MILLRACE_KAFKA_BROKERS; " +
			"`millrace status` prints the address of an embedded broker")
	}
	// No roles: nothing runs, but the connections are those of a process.
	p := newApp(Shop(), cfg, nil, log)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	access, err := kafkaAccess(cfg.Kafka)
	if err != nil {
		return nil, err
	}
	p.kafka = kafka.Config{Brokers: cfg.Kafka.Brokers, ClientID: "millrace", Security: access, Logger: log}
	if err := errors.Join(p.startRegistry(), p.startSeals()); err != nil {
		return nil, err
	}
	return p, nil
}

// TrainingConsents returns who refuses that training sets use their facts: customers who refuse
// analytics, as the log has it up to the given offsets of the topic of customers, or has it now if upto
// is nil. It returns these offsets, too.
func TrainingConsents(ctx context.Context, cfg config.Config, upto map[int32]int64, log *slog.Logger) (
	refuses func(entity string, ids ...string) bool, consents map[int32]int64, err error) {
	p, err := openLog(cfg, log)
	if err != nil {
		return nil, nil, fmt.Errorf("the consents of customers: %w", err)
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if p.refusals, consents, err = refusals.Read(ctx, p.kafka, p.decoder, log, upto); err != nil {
		return nil, nil, fmt.Errorf("the consents of customers: %w", err)
	}
	return p.refusesFeatures, consents, nil
}

// logOfFacts returns the facts on the log.
func (p *App) logOfFacts() *training.Log {
	return &training.Log{
		Brokers: strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder, Logger: p.log,
	}
}

// TrainingTable is a table of the lake with a training set.
type TrainingTable struct {
	name lake.Name
	lake *lake.Lake
}

// trainingKind marks tables with training sets, and manifestProperty has the manifest of each.
const (
	trainingKind     = "training set"
	manifestProperty = "millrace.training-set.manifest"
)

// OpenTrainingTable opens the lake for a table, which need not exist. It fails if the table is not one
// with a training set.
func OpenTrainingTable(
	ctx context.Context, cfg config.Config, name string, log *slog.Logger,
) (_ *TrainingTable, err error) {
	t := new(TrainingTable)
	if t.name, err = lake.ParseName(name); err != nil {
		return nil, err
	}
	if len(t.name) != 2 || t.name[0] == declare.Namespace {
		return nil, fmt.Errorf("table %s: want NAMESPACE.TABLE, with another namespace than %s", name, declare.Namespace)
	}
	where, err := LakeConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	where.Tables = []declare.Table{}
	// Opening for writing creates a missing lake, in a folder that may be mistyped.
	where.ReadOnly = true
	if t.lake, err = lake.Open(ctx, where); err != nil {
		return nil, err
	}
	where.ReadOnly = false
	if err := t.lake.Close(); err != nil {
		return nil, err
	}
	if t.lake, err = lake.Open(ctx, where); err != nil {
		return nil, err
	}
	if err := load.Check(ctx, t.lake, t.name, trainingKind); err != nil {
		return nil, errors.Join(err, t.lake.Close())
	}
	return t, nil
}

// Close closes the lake.
func (t *TrainingTable) Close() error { return t.lake.Close() }

// Load makes a file the content of the table, in one commit, together with its manifest.
func (t *TrainingTable) Load(ctx context.Context, file string, m training.Manifest) error {
	manifest, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the manifest: %w", err)
	}
	return load.File(ctx, t.lake, load.Config{
		Table: t.name, File: file, Kind: trainingKind, Properties: map[string]string{manifestProperty: string(manifest)},
	})
}

// Manifest returns the manifest of the set that the table has.
func (t *TrainingTable) Manifest(ctx context.Context) (training.Manifest, error) {
	have, err := t.lake.Load(ctx, t.name)
	if err != nil {
		return training.Manifest{}, err
	}
	return training.DecodeManifest(strings.NewReader(have.Properties()[manifestProperty]))
}
