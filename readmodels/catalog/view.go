package catalog

import (
	"context"
	"errors"
	"log/slog"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// Name is the view's name and version. A change in the form of the documents gets a new version,
// which is built beside the old one.
const Name = "catalog/v2"

// View keeps one document per product in an index. It is a streams.Sink and a streams.Inspector.
type View struct {
	sink       string // name of this version: "catalog/v2", "catalog/v2@2"
	index      Index
	watermarks *streams.Watermarks
	fresh      readmodels.Freshness
	log        *slog.Logger
}

// New returns the view on an index. The caller closes the index.
func New(index Index, logger *slog.Logger) *View { return NewVersion(index, Name, logger) }

// NewVersion returns the version of the view that an index has, under the name of a sink. Answers of
// queries contain the name of the view.
func NewVersion(index Index, sink string, logger *slog.Logger) *View {
	watermarks := streams.NewWatermarks()
	v := &View{sink, index, watermarks, readmodels.Freshness{View: Name, Aggregate: event.Product,
		Watermarks: watermarks}, logger}
	if damage := index.Damage(); damage != "" {
		v.Faults().Report(logger, sink, "journal", damage)
	}
	return v
}

// Faults returns what is damaged in the view and not rebuilt yet.
func (v *View) Faults() *streams.Faults { return v.watermarks.Faults() }

// lost discards what is damaged, so that the runtime reads it from the log again. It returns err,
// joined with an error of discarding.
func (v *View) lost(ctx context.Context, err error) error {
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		return err
	}
	piece := "documents"
	if len(damaged.SKUs) == 0 {
		piece = "positions"
	}
	switch discarded := v.index.Discard(ctx, damaged); {
	case discarded == nil:
		v.Faults().Report(v.log, v.sink, piece, err.Error())
	// A reader may not discard. The process that feeds the view inspects it and does.
	case !errors.Is(discarded, ErrReadOnly):
		err = errors.Join(err, discarded)
	}
	return err
}

// load reads products, and discards damaged ones.
func (v *View) load(ctx context.Context, skus ...string) (map[string]*catalogv1.Product, error) {
	products, err := v.index.Load(ctx, skus...)
	return products, v.lost(ctx, err)
}

// Shown returns the version that the view shows of a product, or 0 if it does not show it.
func (v *View) Shown(ctx context.Context, _ event.Aggregate, sku string) (uint64, error) {
	products, err := v.load(ctx, sku)
	return products[sku].GetVersion(), err
}

// Inspect implements streams.Inspector.
func (v *View) Inspect(ctx context.Context) error {
	return v.lost(ctx, v.index.Each(ctx, func(*catalogv1.Product) error { return nil }))
}

// Runtime returns what feeds the view. An index commits one batch to disk at a time, so a few
// workers with large batches are fastest.
func (v *View) Runtime(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *streams.Runtime {
	return streams.New(streams.Config{
		Name: v.sink, Topics: []string{event.Product.Topic}, Sink: v, Watermarks: v.watermarks, Kafka: cfg,
		Decoder: decoder, Logger: logger,
		Workers: 2, Batch: 2000,
	})
}

// Follower returns what tracks the view's progress in a process that does not feed it.
func (v *View) Follower(cfg kafka.Config, logger *slog.Logger) *streams.Follower {
	return streams.NewFollower(streams.FollowConfig{
		Name: v.sink, Topics: []string{event.Product.Topic}, Sink: v, Watermarks: v.watermarks, Kafka: cfg,
		Logger: logger,
	})
}

// Apply implements streams.Sink: it folds the records into the documents of their products.
func (v *View) Apply(ctx context.Context, records []streams.Record) error {
	docs, err := v.load(ctx, readmodels.Streams(records)...)
	if err != nil {
		return err
	}
	changed, err := readmodels.Fold(docs, records, Project)
	var unreadable *streams.UnreadableError
	if err != nil && !errors.As(err, &unreadable) {
		return err
	}
	save := make([]*catalogv1.Product, 0, len(changed))
	for sku := range changed {
		save = append(save, docs[sku])
	}
	if err := failpoint.Hit("view." + v.sink + ".save.before"); err != nil {
		return err
	}
	if err := v.index.Save(ctx, save); err != nil {
		return err
	}
	return err // nil, or the records that could not be read
}

// Positions implements streams.Sink.
func (v *View) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	positions, err := v.index.Positions(ctx, topic)
	// The log is read from its beginning, as without positions.
	if damaged := (*DamagedError)(nil); errors.As(err, &damaged) {
		if err := v.lost(ctx, err); err != nil && !errors.As(err, &damaged) {
			return nil, err
		}
		return map[int32]streams.Applied{}, nil
	}
	return positions, err
}

// SavePositions implements streams.Sink.
func (v *View) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	return v.index.SavePositions(ctx, topic, moves)
}

// Status returns the number of documents and how fresh they are.
func (v *View) Status(ctx context.Context) (readmodels.Status, error) {
	count, err := v.index.Count(ctx)
	if err != nil {
		return readmodels.Status{}, err
	}
	return v.fresh.Status(count), nil
}

// Digest returns the digest of the view's content, one item per product.
func (v *View) Digest(ctx context.Context, _ event.Aggregate) (*digest.Digest, error) {
	d := digest.New()
	err := v.index.Each(ctx, func(p *catalogv1.Product) error { return readmodels.AddDocument(d, p.Sku, p) })
	if err != nil {
		return nil, v.lost(ctx, err)
	}
	return d, nil
}

// Items implements readmodels.Contents.
func (v *View) Items(ctx context.Context, fn func(sku string, item readmodels.Item) error) error {
	return v.lost(ctx, v.index.Each(ctx, func(p *catalogv1.Product) error {
		return fn(p.GetSku(), readmodels.Item{Version: p.GetVersion(), Content: p})
	}))
}

// Item implements readmodels.Contents.
func (v *View) Item(ctx context.Context, skus []string) (map[string]readmodels.Item, error) {
	products, err := v.load(ctx, skus...)
	if err != nil {
		return nil, err
	}
	items := make(map[string]readmodels.Item, len(products))
	for sku, p := range products {
		items[sku] = readmodels.Item{Version: p.GetVersion(), Content: p}
	}
	return items, nil
}
