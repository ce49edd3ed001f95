package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/streams"
)

// viewArchive is the lake's tables of events, for views whose events the log has deleted. It implements
// streams.Archive. The lake is opened when it is needed, because few processes ever need it.
type viewArchive struct {
	app *App

	mu   sync.Mutex
	lake *lake.Lake   // nil until it is needed
	done func() error // closes lake, if it was opened here
}

// open returns the lake of this process, or opens it to read.
func (a *viewArchive) open(ctx context.Context) (*lake.Lake, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lake != nil {
		return a.lake, nil
	}
	l, done, err := featureArchive{a.app}.open(ctx)
	if err != nil {
		return nil, err
	}
	a.lake, a.done = l, done
	return l, nil
}

// Close closes the lake. Nothing uses the archive any more.
func (a *viewArchive) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lake == nil {
		return nil
	}
	return a.done()
}

// Extent implements streams.Archive.
func (a *viewArchive) Extent(ctx context.Context, topic string) (streams.Extent, error) {
	l, err := a.open(ctx)
	var p lake.Progress
	if err == nil {
		p, err = l.EventsProgress(ctx, topic)
	}
	if errors.Is(err, lake.ErrNoLake) || errors.Is(err, lake.ErrNoEvents) {
		err = fmt.Errorf("%w: %w", streams.ErrNotArchived, err)
	}
	// Landers read with another client, which pads the id in base64.
	return streams.Extent{Topic: strings.TrimRight(p.TopicID, "="), Next: p.Next}, err
}

// Events implements streams.Archive.
func (a *viewArchive) Events(ctx context.Context, topic string, ranges map[int32]streams.Range) (
	[]streams.Record, error,
) {
	l, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	offsets := make(map[int32]lake.Offsets, len(ranges))
	for partition, r := range ranges {
		offsets[partition] = lake.Offsets(r)
	}
	var records []streams.Record
	err = l.EventsIn(ctx, topic, offsets, func(e event.Event, partition int32, offset int64) error {
		records = append(records, streams.Record{Event: kept(e), Topic: topic, Partition: partition, Offset: offset})
		return nil
	})
	slices.SortFunc(records, func(a, b streams.Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	return records, err
}

// kept returns an event that does not share memory with the batch that it was read from.
func kept(e event.Event) event.Event {
	e.Aggregate, e.Stream, e.Type = strings.Clone(e.Aggregate), strings.Clone(e.Stream), strings.Clone(e.Type)
	e.CorrelationID, e.CausationID = strings.Clone(e.CorrelationID), strings.Clone(e.CausationID)
	e.TraceParent, e.Data = strings.Clone(e.TraceParent), slices.Clone(e.Data)
	return e
}

// Seal implements streams.Archive.
func (a *viewArchive) Seal(ctx context.Context, topic string, e event.Event) (event.Header, error) {
	return a.app.seals.Seal(ctx, topic, e)
}
