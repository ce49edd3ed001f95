package app

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/history"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
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

// historyFacts returns the facts in ClickHouse.
func historyFacts(cfg config.Config, groups []*features.Group, log *slog.Logger) (training.Facts, func() error, error) {
	c := cfg.ClickHouse
	if c.URL == "" {
		return nil, nil, errors.New("clickhouse.url is empty: set it in millrace.yaml or MILLRACE_CLICKHOUSE_URL to the server " +
			"that has the facts; an embedded engine serves its own process only, so use --from log")
	}
	store, err := OpenStore(c, nil)
	if err != nil {
		return nil, nil, err
	}
	h, err := history.Open(history.Config{Store: store, Groups: groups, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return &training.ClickHouse{Store: store, Layout: h}, store.Close, nil
}

// logFacts returns the facts on the log. Without a store, records are checked by the seals that the
// system announces.
func logFacts(cfg config.Config, log *slog.Logger) (_ training.Facts, _ func() error, err error) {
	if cfg.Kafka.Brokers == "" {
		return nil, nil, errors.New("kafka.brokers is empty: set it in millrace.yaml or MILLRACE_KAFKA_BROKERS; " +
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
		return nil, nil, err
	}
	p.kafka = kafka.Config{Brokers: cfg.Kafka.Brokers, ClientID: "millrace", Security: access, Logger: log}
	if err := errors.Join(p.startRegistry(), p.startSeals()); err != nil {
		return nil, nil, err
	}
	return p.logOfFacts(), p.Close, nil
}

// logOfFacts returns the facts on the log.
func (p *App) logOfFacts() *training.Log {
	return &training.Log{
		Brokers: strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder, Logger: p.log,
	}
}
