package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/history"
	"github.com/millrace/millrace/lake"
)

// featureArchive is the lake's tables of events, for the history of features. The lake is opened when
// it is needed: few processes ever need it.
type featureArchive struct{ *App }

// Topic implements history.Archive.
func (a featureArchive) Topic(ctx context.Context, topic string) (history.Archived, error) {
	l, done, err := a.open(ctx)
	if errors.Is(err, lake.ErrNoLake) {
		return history.Archived{}, fmt.Errorf("%w: %w", history.ErrNotArchived, err)
	}
	if err != nil {
		return history.Archived{}, err
	}
	p, err := l.EventsProgress(ctx, topic)
	if errors.Is(err, lake.ErrNoLake) || errors.Is(err, lake.ErrNoEvents) {
		err = fmt.Errorf("%w: %w", history.ErrNotArchived, err)
	}
	if err != nil {
		return history.Archived{}, errors.Join(err, done())
	}
	return history.Archived{TopicID: p.TopicID, Next: p.Next, Seen: p.Seen, Close: done,
		Events: func(ctx context.Context, partition int32, from, to int64, each func(event.Event, int64) error) error {
			return l.EventsBetween(ctx, topic, partition, from, to, each)
		}}, nil
}

// open returns the lake of this process, or else opens it to read.
func (a featureArchive) open(ctx context.Context) (l *lake.Lake, done func() error, err error) {
	if a.lake != nil {
		return a.lake, func() error { return nil }, nil
	}
	c, err := LakeConfig(a.cfg, a.log)
	if err != nil {
		return nil, nil, err
	}
	c.Tables, c.ReadOnly, c.S3.Dependency = a.modules.tables(), true, a.dependencies.Named("s3")
	if l, err = lake.Open(ctx, c); err != nil {
		return nil, nil, err
	}
	return l, l.Close, nil
}
