package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/served"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/lake"
)

// startServedLog starts logging a sample of the vectors that are served. The settings or a flag say how
// many.
func (p *App) startServedLog() {
	p.served = served.NewLog(served.LogConfig{Sample: p.cfg.Features.Online.LogSample, Kafka: p.kafka, Partitions: int32(p.cfg.Kafka.Partitions),
		Now: time.Now, Logger: p.log.With("part", "features")})
	p.metrics.Counts("millrace_features_served_vectors_total",
		"Served vectors of the sample: logged, or dropped because the log was too slow or did not accept them.",
		[]string{"outcome"}, func(set func(float64, ...string)) {
			set(float64(p.served.Written()), "logged")
			set(float64(p.served.Dropped()), "dropped")
		})
	p.background("log of served features", p.served.Run)
	p.flags.follow(func() { p.served.SetSample(p.logSample()) })
}

// ServedCheck is the result of VerifyServed.
type ServedCheck struct {
	served.Result
	Unreadable      int    // records of the topic that are not served vectors
	FirstUnreadable string // where the first one is, and why
}

// VerifyServed recomputes the newest vectors that a running system has logged, at most limit of them,
// from the lake's tables of events. It waits for the tables as long as wait, and only reads.
func VerifyServed(ctx context.Context, cfg config.Config, groups []*features.Group, limit int, wait time.Duration,
	progress func(stage string, done, total int64), log *slog.Logger) (_ ServedCheck, err error) {
	access, err := kafkaAccess(cfg.Kafka)
	if err != nil {
		return ServedCheck{}, err
	}
	progress("read the log of served vectors", 0, 0)
	sample, err := served.Read(ctx, kafka.Config{Brokers: cfg.Kafka.Brokers, ClientID: "millrace", Security: access,
		Logger: log}, limit)
	if err != nil {
		return ServedCheck{}, err
	}
	where, err := LakeConfig(cfg, log)
	if err != nil {
		return ServedCheck{}, err
	}
	where.ReadOnly = true
	l, err := lake.Open(ctx, where)
	if err != nil {
		return ServedCheck{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	result, err := served.Verify(ctx, sample.Vectors, served.VerifyConfig{Groups: groups, Events: lakeEvents{l}, Wait: wait,
		Progress: progress})
	return ServedCheck{result, sample.Unreadable, sample.FirstUnreadable}, err
}

// lakeEvents is the events of the lake's tables, for features, which do not know the lake.
type lakeEvents struct{ *lake.Lake }

// Next implements served.Events.
func (l lakeEvents) Next(ctx context.Context, topic string) (map[int32]int64, int64, error) {
	s, err := l.EventsTable(ctx, topic)
	return s.Offsets, s.Rows, err
}
