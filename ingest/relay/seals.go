package relay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// A relay seals every record that it publishes. Before the first one it announces the name of its seal on PositionsTopic, with an
// offset for each partition: from there on, every record must be sealed. The name is derived from the store's epoch and the
// topic's id, so the next relay uses the same name.
//
// Readers accept every announced name, and the highest announced offsets. So a stray announcement can only weaken the check. It
// cannot make readers reject a real event.

// announcement says that the records of a service's topic are sealed from the floors on, under this name or another announced one.
type announcement struct {
	name   string
	floors []int64
}

const announcedBehind = "/seal/" // in its key: the service before it, the name behind it

func (a announcement) record(service string) kafka.Record {
	floors := make([]string, len(a.floors))
	for i, f := range a.floors {
		floors[i] = strconv.FormatInt(f, 10)
	}
	return kafka.Record{Topic: PositionsTopic, Partition: kafka.AnyPartition, Key: []byte(service + announcedBehind + a.name), Value: []byte(strings.Join(floors, ","))}
}

// parseAnnouncement reads what record wrote; ok is false where it is something else.
func parseAnnouncement(m kafka.Message) (service string, a announcement, ok bool) {
	service, a.name, ok = strings.Cut(string(m.Key), announcedBehind)
	if !ok || service == "" || a.name == "" {
		return "", announcement{}, false
	}
	for text := range strings.SplitSeq(string(m.Value), ",") {
		floor, err := strconv.ParseInt(text, 10, 64)
		if err != nil || floor < 0 {
			return "", announcement{}, false
		}
		a.floors = append(a.floors, floor)
	}
	return service, a, true
}

// sealName is the name under which the records of a topic are sealed.
func sealName(epoch, topicID string) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%q %q", epoch, topicID)
	return hex.EncodeToString(h.Sum(nil))
}

// announce says under which name this relay seals.
func (r *Relay) announce(ctx context.Context, p *kafka.TransactionalProducer, a *announcement) error {
	if a == nil {
		return nil
	}
	if err := p.Begin(); err != nil {
		return err
	}
	ctx, cancel := outlive(ctx, 3*time.Second) // like commit
	defer cancel()
	ctx, late := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer late()
	if err := p.Produce(ctx, a.record(r.cfg.Aggregate.Service)); err != nil {
		return err
	}
	return p.Commit(ctx)
}

// sealing returns the announcement to make before anything is published, or nil if the name is announced already. begun reports
// whether relays have published to the topic before. Their records may have no seal and stay valid. Otherwise everything on the
// topic is a stray.
func (l *lookout) sealing(ctx context.Context, name string, begun bool) (*announcement, error) {
	end, err := within(ctx, func(ctx context.Context) (map[int32]int64, error) { return l.admin.EndOffsets(ctx, PositionsTopic) })
	if err != nil {
		return nil, err
	}
	before := newAnnounced()
	err = kafka.ReadAll(ctx, l.cfg.Kafka, PositionsTopic, nil, end, func(m kafka.Message) error {
		if service, a, ok := parseAnnouncement(m); ok && service == l.cfg.Aggregate.Service {
			before.add(a)
		}
		return nil
	})
	if err != nil || before.names[name] {
		return nil, err
	}
	a := &announcement{name: name, floors: make([]int64, l.info.Partitions)}
	for p := range a.floors {
		switch {
		case len(before.names) > 0:
			a.floors[p] = before.floors[int32(p)]
		case begun:
			a.floors[p] = l.end[int32(p)]
		}
	}
	return a, nil
}

// announced holds the announcements for one topic.
type announced struct {
	names  map[string]bool
	floors map[int32]int64 // the highest that were announced
	over   bool            // more names than a real topic can have: the check is off
}

func newAnnounced() *announced {
	return &announced{names: map[string]bool{}, floors: map[int32]int64{}}
}

// mostNames bounds the memory that a flood of strays can take. A real topic has one name for each epoch of its store.
const mostNames = 10_000

func (a *announced) add(more announcement) {
	if a.over {
		return
	}
	a.names[more.name] = true
	for p, floor := range more.floors {
		a.floors[int32(p)] = max(a.floors[int32(p)], floor)
	}
	a.over = len(a.names) > mostNames
}

func (a *announced) clone() *announced {
	return &announced{maps.Clone(a.names), maps.Clone(a.floors), a.over}
}

// Seals checks records for readers of the log. It implements registry.Seals and is safe for concurrent use.
type Seals struct {
	cfg      kafka.Config
	admin    *kafka.Admin
	services map[string]string // by topic

	known atomic.Pointer[map[string]*announced] // by topic

	mu     sync.Mutex // of a look
	next   map[int32]int64
	looked time.Time
}

// NewSeals reads the announcements when the first record is checked. Call Close to release its Kafka client.
func NewSeals(cfg kafka.Config, aggregates []event.Aggregate) (*Seals, error) {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return nil, err
	}
	s := &Seals{cfg: cfg, admin: admin, services: map[string]string{}, next: map[int32]int64{}}
	for _, a := range aggregates {
		s.services[a.Topic] = a.Service
	}
	s.known.Store(&map[string]*announced{})
	return s, nil
}

// Close releases the Kafka client.
func (s *Seals) Close() { s.admin.Close() }

// lookAgain is how often Seals looks for the first announcement of a topic.
const lookAgain = time.Second

var (
	errUnsealed = errors.New("it has no seal, so the relay did not publish it")
	errForeign  = errors.New("it has the seal of another system, so the relay did not publish it")
	errChanged  = errors.New("its seal does not match, so the relay did not publish it like this")
)

// CheckSeal returns an error if the relay of the topic did not publish the record. sealed reports whether the record has a valid
// seal: records from before the first announcement pass without one. The error wraps event.ErrNotEvent, or registry.ErrUnavailable
// if the announcements cannot be read now.
func (s *Seals) CheckSeal(ctx context.Context, r registry.Record, e event.Event) (sealed bool, err error) {
	if s.services[r.Topic] == "" {
		return false, nil
	}
	for looked := false; ; looked = true {
		sealed, final, bad := s.judge(r, e)
		switch {
		case !final && !looked:
		case bad != nil:
			return false, fmt.Errorf("%w: %w", event.ErrNotEvent, bad)
		default:
			return sealed, nil
		}
		since := time.Now()
		if bad == nil { // nothing is announced yet
			since = since.Add(-lookAgain)
		}
		if err := s.look(ctx, since); err != nil {
			return false, fmt.Errorf("%w: %w", registry.ErrUnavailable, err)
		}
	}
}

// judge decides by the announcements read so far. final is false if newer ones could change the result.
func (s *Seals) judge(r registry.Record, e event.Event) (sealed, final bool, bad error) {
	a := (*s.known.Load())[r.Topic]
	if a == nil {
		return false, false, nil
	}
	name, there := event.Sealed(r.Headers)
	switch {
	case a.over:
		return false, true, nil
	case there && a.names[string(name)]:
		if !e.SealHolds(r.Headers) {
			return false, true, errChanged
		}
		return true, true, nil
	case r.Offset < a.floors[r.Partition]:
		return false, true, nil
	case !there:
		return false, true, errUnsealed
	default:
		return false, false, errForeign
	}
}

// look reads new announcements, unless it has done so after since.
func (s *Seals) look(ctx context.Context, since time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looked.After(since) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer cancel()
	now := time.Now()
	end, err := s.admin.EndOffsets(ctx, PositionsTopic)
	if err != nil {
		return fmt.Errorf("look for the relays' seals: %w", err)
	}
	for p, next := range s.next {
		if end[p] < next { // the topic was deleted and created again
			s.next = nil
		}
	}
	found := map[string]*announced{}
	for topic, a := range *s.known.Load() {
		found[topic] = a.clone() // others read it now
	}
	err = kafka.ReadAll(ctx, s.cfg, PositionsTopic, s.next, end, func(m kafka.Message) error {
		service, more, ok := parseAnnouncement(m)
		if !ok {
			return nil
		}
		for topic, of := range s.services {
			if of != service {
				continue
			}
			if found[topic] == nil {
				found[topic] = newAnnounced()
			}
			found[topic].add(more)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for the relays' seals: %w", err)
	}
	s.known.Store(&found)
	s.next, s.looked = end, now
	return nil
}
