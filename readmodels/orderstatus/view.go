package orderstatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// Name is the view's name and version. A change in the form of the documents gets a new version,
// which is built beside the old one.
const Name = "orderstatus/v2"

// View keeps one document per order in Redis. It is a streams.Sink and a streams.Inspector.
type View struct {
	sink       string // name of this version: "orderstatus/v2", "orderstatus/v2@2"
	docs       *redis.Documents
	watermarks *streams.Watermarks  // how far the view is; also has its faults
	fresh      readmodels.Freshness // answers queries with a token
	log        *slog.Logger
}

// New returns the view on a Redis. The caller closes the client.
func New(client *redis.Client, logger *slog.Logger) *View { return NewVersion(client, Name, logger) }

// NewVersion returns the version of the view that is stored under the name of a sink. Answers of
// queries contain the name of the view.
func NewVersion(client *redis.Client, sink string, logger *slog.Logger) *View {
	watermarks := streams.NewWatermarks()
	return &View{sink, client.Documents(sink), watermarks, readmodels.Freshness{View: Name, Aggregate: event.Order,
		Watermarks: watermarks}, logger}
}

// Faults returns what is damaged in the view and not rebuilt yet.
func (v *View) Faults() *streams.Faults { return v.watermarks.Faults() }

// Runtime returns what feeds the view.
func (v *View) Runtime(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *streams.Runtime {
	return streams.New(streams.Config{
		Name: v.sink, Topics: []string{event.Order.Topic}, Sink: v, Watermarks: v.watermarks, Kafka: cfg,
		Decoder: decoder, Logger: logger,
	})
}

// Follower returns what tracks the view's progress in a process that does not feed it.
func (v *View) Follower(cfg kafka.Config, logger *slog.Logger) *streams.Follower {
	return streams.NewFollower(streams.FollowConfig{
		Name: v.sink, Topics: []string{event.Order.Topic}, Sink: v, Watermarks: v.watermarks, Kafka: cfg, Logger: logger,
	})
}

// Apply implements streams.Sink: it folds the records into the documents of their orders.
//
// Redis saves a document only if its version is higher than the stored one. So a record that is
// delivered again, or by two processes, changes nothing.
func (v *View) Apply(ctx context.Context, records []streams.Record) error {
	docs, err := v.load(ctx, readmodels.Streams(records)...)
	if err != nil {
		return err
	}
	// The readable records are saved even if others are not readable.
	_, err = readmodels.Fold(docs, records, Project)
	var unreadable *streams.UnreadableError
	if err != nil && !errors.As(err, &unreadable) {
		return err
	}
	// Save all documents, even unchanged ones: the reference of a document is stored separately and
	// may be lost.
	save := make([]redis.Document, 0, len(docs))
	for stream, doc := range docs {
		data, err := proto.Marshal(doc)
		if err != nil {
			return fmt.Errorf("marshal order %s: %w", stream, err)
		}
		save = append(save, redis.Document{ID: stream, Version: doc.Version, Data: data, Reference: doc.Reference})
	}
	if err := failpoint.Hit("view." + v.sink + ".save.before"); err != nil {
		return err
	}
	if err := v.docs.Save(ctx, save); err != nil {
		return v.lost(ctx, err)
	}
	return err // nil, or the records that could not be read
}

// lost translates redis.ErrLost into streams.ErrLost. It discards damaged documents, so that the
// runtime reads them from the log again.
func (v *View) lost(ctx context.Context, err error) error {
	if !errors.Is(err, redis.ErrLost) {
		return err
	}
	var damaged *redis.DamagedError
	if errors.As(err, &damaged) {
		switch discarded := v.docs.Discard(ctx, damaged); {
		case discarded == nil:
			v.Faults().Report(v.log, v.sink, "documents", err.Error())
		// A reader may not discard. The process that feeds the view inspects it and does.
		case !redis.ReadOnly(discarded):
			err = errors.Join(err, discarded)
		}
	}
	return fmt.Errorf("view %s: %w: %w", v.sink, streams.ErrLost, err)
}

// Inspect implements streams.Inspector. It restores missing references from the documents. Reading
// every document also finds damaged ones.
func (v *View) Inspect(ctx context.Context) error {
	// Documents are read one by one and checked in batches.
	some := make([]redis.Document, 0, digestBatch)
	complete := func() error {
		// Only documents whose reference is missing are written again.
		missing, err := v.docs.Unreferenced(ctx, some)
		if err != nil {
			return err
		}
		some = slices.DeleteFunc(some, func(d redis.Document) bool { return !missing[d.ID] })
		if len(some) > 0 {
			err = v.docs.Save(ctx, some)
			if errors.Is(err, redis.ErrLost) { // a key of another type was in the way; the first attempt has removed it
				err = v.docs.Save(ctx, some)
			}
			if err != nil {
				return err
			}
			v.log.Warn("view: restored lost references of documents", "view", v.sink, "documents", len(some),
				"first", some[0].ID)
		}
		some = some[:0]
		return nil
	}
	err := v.docs.Each(ctx, func(s redis.Document) error {
		doc, err := unmarshal(s)
		if err != nil {
			return err
		}
		s.Reference = doc.Reference
		if some = append(some, s); len(some) < digestBatch {
			return nil
		}
		return complete()
	})
	return v.lost(ctx, errors.Join(err, complete()))
}

// load returns the documents of orders, without those that do not exist. Damaged ones are
// discarded.
func (v *View) load(ctx context.Context, ids ...string) (map[string]*orderv1.OrderStatus, error) {
	stored, err := v.docs.Load(ctx, ids...)
	if err != nil {
		return nil, v.lost(ctx, err)
	}
	docs := make(map[string]*orderv1.OrderStatus, len(stored))
	for id, s := range stored {
		if docs[id], err = unmarshal(s); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// unmarshal decodes a stored document.
func unmarshal(stored redis.Document) (*orderv1.OrderStatus, error) {
	doc := &orderv1.OrderStatus{}
	if err := proto.Unmarshal(stored.Data, doc); err != nil {
		return nil, fmt.Errorf("read the document of order %s: %w", stored.ID, err)
	}
	return doc, nil
}

// Positions implements streams.Sink. Damaged positions are deleted, and the log is read from its
// beginning.
func (v *View) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	// Without positions, the runtime reads the log from its beginning.
	stored, err := v.docs.Positions(ctx)
	if err != nil {
		return nil, err
	}
	positions := map[int32]streams.Applied{}
	for field, value := range stored {
		// The hash contains the positions of all topics of the view, as TOPIC/PARTITION.
		id, ours := strings.CutPrefix(field, topic+"/")
		if !ours {
			continue
		}
		partition, err := strconv.ParseInt(id, 10, 32)
		if err == nil {
			positions[int32(partition)], err = streams.ParseApplied(value)
		}
		if err != nil {
			// Delete all positions, not only the damaged one: the view must be read from the
			// beginning of every partition.
			switch forgotten := v.docs.ForgetPositions(ctx); {
			case forgotten == nil:
				v.Faults().Report(v.log, v.sink, "positions", fmt.Sprintf("position %q of %q: %v", value, field, err))
			case !redis.ReadOnly(forgotten):
				return nil, forgotten
			}
			return map[int32]streams.Applied{}, nil
		}
	}
	return positions, nil
}

// SavePositions implements streams.Sink. The first positions begin the view, or begin it again
// after a loss.
func (v *View) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	// Redis moves a position only if it still is From, so two processes cannot both move it.
	ms := make([]redis.Move, len(moves))
	// A first move has no previous position. Begin prepares the view for it.
	begin := false
	for i, m := range moves {
		ms[i] = redis.Move{Field: topic + "/" + strconv.Itoa(int(m.Partition)), To: m.To.String()}
		if m.First {
			begin = true
		} else {
			ms[i].From = m.From.String()
		}
	}
	if begin {
		if err := v.docs.Begin(ctx); err != nil {
			return v.lost(ctx, err)
		}
	}
	return v.lost(ctx, v.docs.MovePositions(ctx, ms))
}

// Status returns the number of documents and how fresh they are.
func (v *View) Status(ctx context.Context) (readmodels.Status, error) {
	count, err := v.docs.Count(ctx)
	if err != nil {
		return readmodels.Status{}, err
	}
	return v.fresh.Status(count), nil
}

// Digest returns the digest of what queries can read, one item per order.
func (v *View) Digest(ctx context.Context, _ event.Aggregate) (*digest.Digest, error) {
	d := digest.New()
	err := v.Items(ctx, func(id string, item readmodels.Item) error {
		return readmodels.AddDocument(d, id, item.Content)
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Items implements readmodels.Contents: what queries can read. An order whose reference is lost
// counts as one without a reference.
func (v *View) Items(ctx context.Context, fn func(id string, item readmodels.Item) error) error {
	// References are separate entries, so they are checked in batches.
	some := make([]redis.Document, 0, digestBatch)
	flush := func() error {
		items, err := v.items(ctx, some)
		for i := 0; i < len(some) && err == nil; i++ {
			err = fn(some[i].ID, items[some[i].ID])
		}
		some = some[:0]
		return err
	}
	err := v.docs.Each(ctx, func(s redis.Document) error {
		if some = append(some, s); len(some) < digestBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	return v.lost(ctx, err)
}

// Item implements readmodels.Contents.
func (v *View) Item(ctx context.Context, ids []string) (map[string]readmodels.Item, error) {
	stored, err := v.docs.Load(ctx, ids...)
	if err == nil {
		return v.items(ctx, slices.Collect(maps.Values(stored)))
	}
	return nil, v.lost(ctx, err)
}

// items returns the items of stored documents, and completes these with their references.
func (v *View) items(ctx context.Context, some []redis.Document) (map[string]readmodels.Item, error) {
	docs := make(map[string]*orderv1.OrderStatus, len(some))
	for i, s := range some {
		doc, err := unmarshal(s)
		if err != nil {
			return nil, err
		}
		docs[s.ID], some[i].Reference = doc, doc.Reference
	}
	lost, err := v.docs.Unreferenced(ctx, some)
	if err != nil {
		return nil, err
	}
	items := make(map[string]readmodels.Item, len(some))
	for id, doc := range docs {
		if lost[id] {
			doc.Reference = ""
		}
		items[id] = readmodels.Item{Version: doc.Version, Content: doc}
	}
	return items, nil
}

const digestBatch = 500 // orders per request
