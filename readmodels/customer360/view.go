package customer360

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// Name is the view's name and version. A change in the form of the fragments gets a new version,
// which is built beside the old one.
const Name = "customer360/v2"

// View keeps the fragments in Redis. It is a streams.Sink and a streams.Inspector.
type View struct {
	sink       string // name of this version: "customer360/v2", "customer360/v2@2"
	docs       *redis.Documents
	lease      *redis.Documents                // of evaluating segments, for all versions
	watermarks *streams.Watermarks             // how far the view is; also has its faults
	fresh      map[string]readmodels.Freshness // answers queries with a token, by service
	log        *slog.Logger

	segments []*segment // sorted by name; set before the view is used
	members  *Members   // of segments
	limits   Limits
	features Features
	facts    Facts
}

// New returns the view on a Redis. The caller closes the client.
func New(client *redis.Client, logger *slog.Logger) *View { return NewVersion(client, Name, logger) }

// NewVersion returns the version of the view that is stored under the name of a sink. Answers of
// queries contain the name of the view.
func NewVersion(client *redis.Client, sink string, logger *slog.Logger) *View {
	v := &View{
		sink: sink, docs: client.Documents(sink), lease: client.Documents(Name), watermarks: streams.NewWatermarks(),
		fresh: map[string]readmodels.Freshness{}, log: logger, members: NewMembers(),
		limits: Limits{}.withDefaults(), features: noFeatures{},
	}
	for _, a := range Sources() {
		v.fresh[a.Service] = readmodels.Freshness{View: Name, Aggregate: a, Watermarks: v.watermarks}
	}
	return v
}

// SetFeatures sets which facts the view keeps, and the features that it computes from them. Call it
// before anything else.
func (v *View) SetFeatures(facts Facts, features Features) { v.facts, v.features = facts, features }

// UseMembers sets where the members of segments are kept, which versions of the view share. Call it
// before anything else. Without it, the view has members of its own.
func (v *View) UseMembers(m *Members) { v.members = m }

// SetSegments sets the segments whose members the view keeps, and their limits. Call it before the
// view is used, and after SetFeatures. The error names the segment, and the position in its
// expression.
func (v *View) SetSegments(segments []Segment, limits Limits) (err error) {
	v.limits = limits.withDefaults()
	v.segments, err = compile(segments, v.features.List(), v.limits)
	return err
}

// topics returns the topics that the view reads.
func topics() []string {
	var all []string
	for _, a := range Sources() {
		all = append(all, a.Topic)
	}
	return all
}

// Faults returns what is damaged in the view and not rebuilt yet.
func (v *View) Faults() *streams.Faults { return v.watermarks.Faults() }

// Runtime returns what feeds the view.
func (v *View) Runtime(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *streams.Runtime {
	return streams.New(streams.Config{
		Name: v.sink, Topics: topics(), Sink: v, Watermarks: v.watermarks, Kafka: cfg, Decoder: decoder, Logger: logger,
	})
}

// Follower returns what tracks the view's progress in a process that does not feed it.
func (v *View) Follower(cfg kafka.Config, logger *slog.Logger) *streams.Follower {
	return streams.NewFollower(streams.FollowConfig{
		Name: v.sink, Topics: topics(), Sink: v, Watermarks: v.watermarks, Kafka: cfg, Logger: logger,
	})
}

// fragmentID returns the id of the fragment of a stream. Streams of different aggregates may have
// the same name.
func fragmentID(a event.Aggregate, stream string) string { return a.Name + "/" + stream }

// Apply implements streams.Sink: it folds the records into the fragments of their streams.
//
// Redis saves a fragment only if its version is higher than the stored one. So a record that is
// delivered again, or by two processes, changes nothing.
func (v *View) Apply(ctx context.Context, records []streams.Record) error {
	byTopic := map[string][]streams.Record{}
	for _, r := range records {
		byTopic[r.Topic] = append(byTopic[r.Topic], r)
	}
	var save []redis.Document
	var unreadable streams.UnreadableError
	for _, a := range Sources() {
		some := byTopic[a.Topic]
		if len(some) == 0 {
			continue
		}
		fragments, err := v.load(ctx, a, readmodels.Streams(some)...)
		if err != nil {
			return err
		}
		changed, err := v.fold(a, fragments, some)
		// The readable records are saved even if others are not readable.
		var bad *streams.UnreadableError
		if errors.As(err, &bad) {
			unreadable.Records = append(unreadable.Records, bad.Records...)
			unreadable.Reasons = append(unreadable.Reasons, bad.Reasons...)
		} else if err != nil {
			return err
		}
		for stream, f := range fragments {
			// An unchanged order is saved, too: its reference is stored separately and may be lost.
			if f == nil || !changed[stream] && a != event.Order {
				continue
			}
			d, err := document(a, stream, f)
			if err != nil {
				return err
			}
			save = append(save, d)
		}
	}
	if err := failpoint.Hit("view." + v.sink + ".save.before"); err != nil {
		return err
	}
	if err := v.docs.Save(ctx, save); err != nil {
		return v.lost(ctx, err)
	}
	if len(unreadable.Records) > 0 {
		return &unreadable
	}
	return nil
}

// fold applies the records of one aggregate to fragments, and returns the streams that changed. It
// has the errors of readmodels.Fold.
func (v *View) fold(a event.Aggregate, fragments map[string]*Fragment, records []streams.Record) (map[string]bool, error) {
	if a != event.Behavior {
		return readmodels.Fold(fragments, records, v.facts.Project)
	}
	// Behaviour has no versions, so its guard is the offset.
	changed := map[string]bool{}
	var unreadable streams.UnreadableError
	for _, r := range records {
		before := fragments[r.Event.Stream]
		next, err := projectBehavior(before, r)
		switch {
		case err != nil:
			unreadable.Records = append(unreadable.Records, r)
			unreadable.Reasons = append(unreadable.Reasons, err)
		case next != before:
			fragments[r.Event.Stream], changed[r.Event.Stream] = next, true
		}
	}
	if len(unreadable.Records) > 0 {
		return changed, &unreadable
	}
	return changed, nil
}

// document returns the stored form of a fragment. An order can be found by its customer.
func document(a event.Aggregate, stream string, f *Fragment) (redis.Document, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
	if err != nil {
		return redis.Document{}, fmt.Errorf("marshal the fragment of a %s: %w", a.Name, err)
	}
	return redis.Document{
		ID: fragmentID(a, stream), Version: f.GetVersion(), Data: data, Reference: f.GetOrder().GetCustomerId(),
	}, nil
}

// lost translates redis.ErrLost into streams.ErrLost. It discards damaged fragments, so that the
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

// load returns fragments by stream, without those that do not exist. Damaged ones are discarded.
func (v *View) load(ctx context.Context, a event.Aggregate, names ...string) (map[string]*Fragment, error) {
	ids := make([]string, len(names))
	for i, name := range names {
		ids[i] = fragmentID(a, name)
	}
	stored, err := v.docs.Load(ctx, ids...)
	if err != nil {
		return nil, v.lost(ctx, err)
	}
	fragments := make(map[string]*Fragment, len(stored))
	for id, s := range stored {
		if fragments[strings.TrimPrefix(id, a.Name+"/")], err = unmarshal(s); err != nil {
			return nil, err
		}
	}
	return fragments, nil
}

// unmarshal decodes a stored fragment. Its error does not contain the id, which may be personal.
func unmarshal(stored redis.Document) (*Fragment, error) {
	f := &Fragment{}
	if err := proto.Unmarshal(stored.Data, f); err != nil {
		kind, _, _ := strings.Cut(stored.ID, "/")
		return nil, fmt.Errorf("read the fragment of a %s: %w", kind, err)
	}
	return f, nil
}

// batch is the number of documents per request when all are read.
const batch = 500

// each calls fn with every fragment. An order whose customer does not lead to it comes in lost.
func (v *View) each(
	ctx context.Context, fn func(some []redis.Document, fragments []*Fragment, lost map[string]bool) error,
) error {
	some, fragments := make([]redis.Document, 0, batch), make([]*Fragment, 0, batch)
	flush := func() error {
		lost, err := v.docs.Unreferenced(ctx, some)
		if err == nil {
			err = fn(some, fragments, lost)
		}
		some, fragments = some[:0], fragments[:0]
		return err
	}
	err := v.docs.Each(ctx, func(s redis.Document) error {
		f, err := unmarshal(s)
		if err != nil {
			return err
		}
		s.Reference = f.GetOrder().GetCustomerId()
		some, fragments = append(some, s), append(fragments, f)
		if len(some) < batch {
			return nil
		}
		return flush()
	})
	return v.lost(ctx, errors.Join(err, flush()))
}

// Inspect implements streams.Inspector. It restores the references of orders that were lost.
// Reading every fragment also finds damaged ones.
func (v *View) Inspect(ctx context.Context) error {
	return v.each(ctx, func(some []redis.Document, _ []*Fragment, lost map[string]bool) error {
		missing := slices.DeleteFunc(slices.Clone(some), func(d redis.Document) bool { return !lost[d.ID] })
		if len(missing) == 0 {
			return nil
		}
		err := v.docs.Save(ctx, missing)
		if errors.Is(err, redis.ErrLost) { // a key of another type was in the way; the first attempt has removed it
			err = v.docs.Save(ctx, missing)
		}
		if err == nil {
			v.log.Warn("view: restored lost references of orders", "view", v.sink, "documents", len(missing))
		}
		return err
	})
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
	begin := false
	for i, m := range moves {
		ms[i] = redis.Move{Field: topic + "/" + strconv.Itoa(int(m.Partition)), To: m.To.String()}
		if m.First {
			begin = true
		} else {
			ms[i].From = m.From.String()
		}
	}
	// A first move has no previous position. Begin prepares the view for it. It does nothing if
	// another topic has begun the view.
	if begin {
		if err := v.docs.Begin(ctx); err != nil {
			return v.lost(ctx, err)
		}
	}
	return v.lost(ctx, v.docs.MovePositions(ctx, ms))
}

// Status returns the number of fragments and how fresh they are.
func (v *View) Status(ctx context.Context) (readmodels.Status, error) {
	count, err := v.docs.Count(ctx)
	if err != nil {
		return readmodels.Status{}, err
	}
	lag, known := v.watermarks.Lag(topics()...)
	return readmodels.Status{Documents: count, AsOf: v.watermarks.AsOf(topics()...), Lag: lag, Known: known}, nil
}

// Items implements readmodels.Contents: the fragments. An order whose customer does not lead to it
// counts as one of a guest. Fragments have personal data.
func (v *View) Items(ctx context.Context, fn func(id string, item readmodels.Item) error) error {
	return v.each(ctx, func(some []redis.Document, fragments []*Fragment, lost map[string]bool) error {
		for i, f := range fragments {
			if err := fn(some[i].ID, item(f, lost[some[i].ID])); err != nil {
				return err
			}
		}
		return nil
	})
}

// Item implements readmodels.Contents.
func (v *View) Item(ctx context.Context, ids []string) (map[string]readmodels.Item, error) {
	stored, err := v.docs.Load(ctx, ids...)
	if err != nil {
		return nil, v.lost(ctx, err)
	}
	some, fragments := make([]redis.Document, 0, len(stored)), make(map[string]*Fragment, len(stored))
	for id, s := range stored {
		f, err := unmarshal(s)
		if err != nil {
			return nil, err
		}
		s.Reference = f.GetOrder().GetCustomerId()
		some, fragments[id] = append(some, s), f
	}
	lost, err := v.docs.Unreferenced(ctx, some)
	if err != nil {
		return nil, v.lost(ctx, err)
	}
	items := make(map[string]readmodels.Item, len(stored))
	for id, f := range fragments {
		items[id] = item(f, lost[id])
	}
	return items, nil
}

// item returns a fragment as it is compared.
func item(f *Fragment, lost bool) readmodels.Item {
	if lost {
		f.GetOrder().CustomerId = ""
	}
	return readmodels.Item{Version: f.GetVersion(), Content: f, Private: true}
}

// Digest returns the digest of the fragments of an aggregate, one item per stream. An order whose
// customer does not lead to it counts as one of a guest.
func (v *View) Digest(ctx context.Context, of event.Aggregate) (*digest.Digest, error) {
	d := digest.New()
	err := v.each(ctx, func(some []redis.Document, fragments []*Fragment, lost map[string]bool) error {
		for i, f := range fragments {
			stream, ok := strings.CutPrefix(some[i].ID, of.Name+"/")
			if !ok {
				continue
			}
			if lost[some[i].ID] {
				f.GetOrder().CustomerId = ""
			}
			if err := readmodels.AddDocument(d, stream, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}
