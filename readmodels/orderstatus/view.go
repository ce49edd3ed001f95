package orderstatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Name is the view and its version. A view whose documents look different has another version, and is built beside this one.
const Name = "orderstatus/v2"

// View keeps one document per order in Redis. It is a streams.Sink.
type View struct {
	docs  *redis.Documents
	marks *streams.Watermarks
	fresh readmodels.Freshness
}

// New makes the view over a Redis, which stays the caller's to close.
func New(client *redis.Client) *View {
	marks := streams.NewWatermarks()
	return &View{client.Documents(Name), marks, readmodels.Freshness{View: Name, Aggregate: event.Order, Watermarks: marks}}
}

// Runtime makes what feeds the view.
func (v *View) Runtime(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *streams.Runtime {
	return streams.New(streams.Config{
		Name: Name, Topics: []string{event.Order.Topic}, Sink: v, Watermarks: v.marks, Kafka: cfg, Decoder: decoder, Logger: logger,
	})
}

// Follower makes what tells a process that does not feed the view how far it is.
func (v *View) Follower(cfg kafka.Config, logger *slog.Logger) *streams.Follower {
	return streams.NewFollower(streams.FollowConfig{
		Name: Name, Topics: []string{event.Order.Topic}, Sink: v, Watermarks: v.marks, Kafka: cfg, Logger: logger,
	})
}

// Apply brings the documents of the records' orders up to date.
func (v *View) Apply(ctx context.Context, records []streams.Record) error {
	docs, err := v.load(ctx, readmodels.Streams(records)...)
	if err != nil {
		return err
	}
	_, err = readmodels.Fold(docs, records, Project)
	var unreadable *streams.UnreadableError
	if err != nil && !errors.As(err, &unreadable) {
		return err
	}
	// All of them, changed or not: a document may still be there whose reference, which lies elsewhere, was lost.
	save := make([]redis.Document, 0, len(docs))
	for stream, doc := range docs {
		data, err := proto.Marshal(doc)
		if err != nil {
			return fmt.Errorf("marshal order %s: %w", stream, err)
		}
		save = append(save, redis.Document{ID: stream, Version: doc.Version, Data: data, Reference: doc.Reference})
	}
	if err := failpoint.Hit("view." + Name + ".save.before"); err != nil {
		return err
	}
	if err := v.docs.Save(ctx, save); err != nil {
		return lost(err)
	}
	return err // nil, or what could not be read
}

// lost says in the runtime's words that Redis has lost something.
func lost(err error) error {
	if errors.Is(err, redis.ErrLost) {
		return fmt.Errorf("view %s: %w: %w", Name, streams.ErrLost, err)
	}
	return err
}

func (v *View) load(ctx context.Context, ids ...string) (map[string]*orderv1.OrderStatus, error) {
	stored, err := v.docs.Load(ctx, ids...)
	if err != nil {
		return nil, err
	}
	docs := make(map[string]*orderv1.OrderStatus, len(stored))
	for id, s := range stored {
		if docs[id], err = unmarshal(s); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

func unmarshal(stored redis.Document) (*orderv1.OrderStatus, error) {
	doc := &orderv1.OrderStatus{}
	if err := proto.Unmarshal(stored.Data, doc); err != nil {
		return nil, fmt.Errorf("read the document of order %s: %w", stored.ID, err)
	}
	return doc, nil
}

// Positions implements streams.Sink.
func (v *View) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	stored, err := v.docs.Positions(ctx)
	if err != nil {
		return nil, err
	}
	positions := map[int32]streams.Applied{}
	for field, value := range stored {
		id, ours := strings.CutPrefix(field, topic+"/")
		if !ours {
			continue
		}
		partition, err := strconv.ParseInt(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("position %q: %w", field, err)
		}
		if positions[int32(partition)], err = streams.ParseApplied(value); err != nil {
			return nil, err
		}
	}
	return positions, nil
}

// SavePositions implements streams.Sink. The first positions begin the view, or begin it anew where it lost something.
func (v *View) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	ms := make([]redis.Move, len(moves))
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
			return lost(err)
		}
	}
	return lost(v.docs.MovePositions(ctx, ms))
}

// Status counts the documents and says how fresh they are.
func (v *View) Status(ctx context.Context) (readmodels.Status, error) {
	count, err := v.docs.Count(ctx)
	if err != nil {
		return readmodels.Status{}, err
	}
	return v.fresh.Status(count), nil
}

// Digest sums what queries can read of the view, one item per order. An order that its reference does not find is summed as one
// that has none.
func (v *View) Digest(ctx context.Context) (*digest.Digest, error) {
	d := digest.New()
	some := make([]redis.Document, 0, digestAtOnce)
	add := func() error {
		lost, err := v.docs.Unreferenced(ctx, some)
		if err != nil {
			return err
		}
		for _, s := range some {
			doc, err := unmarshal(s)
			if err != nil {
				return err
			}
			if lost[s.ID] {
				doc.Reference = ""
			}
			if err := readmodels.AddDocument(d, s.ID, doc); err != nil {
				return err
			}
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
		if some = append(some, s); len(some) < digestAtOnce {
			return nil
		}
		return add()
	})
	if err == nil {
		err = add()
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

const digestAtOnce = 500 // orders
