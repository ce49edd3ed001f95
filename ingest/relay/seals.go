package relay

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/settings"
)

// A relay seals every record that it publishes. Before the first one, it announces the name of its
// seal on PositionsTopic, with an offset (floor) for each partition. From that offset on, every
// record must be sealed.
//
// Announcements are signed, and readers ignore all other records. A reader with the service's store
// derives the public key from the store's secret, and trusts that key alone. A reader without the
// store trusts the announced key if all announcements have the same one. If there are several, or
// if an announcement was overwritten, it cannot know which system is the right one. Then it checks
// nothing and reports a fault. So a process that can write to the topic may weaken the check of
// such a reader, but cannot make it reject a real event.

// announcementSet holds the announcements that were read for one service.
type announcementSet struct {
	byName      map[string]announcement // by name
	overwritten map[string]bool         // names whose announcement was overwritten before it was read
	overflow    bool                    // there are more names than a real topic can have
}

// maxNames bounds the memory that a flood of forged announcements can use. A real topic has one name
// for each time that it was restored.
const maxNames = 10_000

// add reads a record of the service. Only announcements under the wanted key count. An empty key
// accepts any.
func (a *announcementSet) add(m kafka.Message, name, wanted string) {
	if a.overflow {
		return
	}
	found, err := parseAnnouncement(m, wanted)
	switch {
	case err == nil:
		a.byName[name] = found
		delete(a.overwritten, name)
	case wanted == "" && isSealName(name):
		if _, known := a.byName[name]; !known {
			a.overwritten[name] = true
		}
	}
	a.overflow = len(a.byName)+len(a.overwritten) > maxNames
}

// trust is the result of reading the announcements of a topic. It is immutable, so checks read it
// without a lock.
type trust struct {
	names     map[string]bool // names of trusted seals
	floors    map[int32]int64 // the highest that were announced, by partition
	announced bool            // there is an announcement
	strict    bool            // the key is the store's, so another name is another system's
	conflict  string          // why nothing is checked; empty if records are checked
}

// trust decides what to trust for a topic. own is the public key of the store. It is empty if this
// process does not have the store.
func (a *announcementSet) trust(own, topic, topicID string) *trust {
	t := &trust{names: map[string]bool{}, floors: map[int32]int64{}, announced: len(a.byName) > 0, strict: own != ""}
	current := false // an announcement is for the topic with this id, not for an earlier one of the same name
	for _, found := range a.byName {
		current = current || found.topicID == topicID
	}
	keys := map[string]bool{}
	for _, found := range a.byName {
		if !current || found.topicID == topicID {
			keys[found.key] = true
			for p, floor := range found.floors {
				t.floors[int32(p)] = max(t.floors[int32(p)], floor)
			}
		}
	}
	for name, found := range a.byName {
		if keys[found.key] {
			t.names[name] = true
		}
	}
	switch {
	case t.strict:
		t.names[sealName(own, topicID)] = true // even if the announcement is lost
	case a.overflow || len(keys) > 1:
		t.conflict = "two systems announce seals for topic " + topic
	case len(a.overwritten) > 0 && t.announced:
		t.conflict = "an announcement of seals for topic " + topic + " was overwritten or deleted"
	}
	return t
}

// Seals checks for readers of the log that a record was published by the relay. It implements
// registry.Seals and is safe for concurrent use.
//
// CheckSeal uses the announcements that are known. Only if they do not decide the case does it read
// new ones. So nearly all checks take no lock.
type Seals struct {
	cfg      kafka.Config
	admin    *kafka.Admin
	services map[string]string           // by topic
	stores   map[string]eventstore.Store // by service

	// known maps topics to their trust. The map is replaced, never changed.
	known atomic.Pointer[map[string]*trust]

	// mu is held by refresh and protects the fields below.
	mu        sync.Mutex
	keys      map[string]string           // public keys of the stores, by service
	announced map[string]*announcementSet // by service
	next      map[int32]int64             // offsets of PositionsTopic to read from
	refreshed map[string]time.Time        // when refresh began, by topic
}

// NewSeals returns a Seals. It reads no announcement before the first check. stores are the stores
// that this process has, keyed by service. For their topics, it trusts only the announcements that
// they sign. Call Close to release the Kafka client.
func NewSeals(cfg kafka.Config, aggregates []event.Aggregate, stores map[string]eventstore.Store) (*Seals, error) {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return nil, err
	}
	s := &Seals{
		cfg: cfg, admin: admin, services: map[string]string{}, stores: stores, keys: map[string]string{},
		announced: map[string]*announcementSet{}, next: map[int32]int64{}, refreshed: map[string]time.Time{},
	}
	for _, a := range aggregates {
		s.services[a.Topic] = a.Service
		s.announced[a.Service] = &announcementSet{byName: map[string]announcement{}, overwritten: map[string]bool{}}
	}
	s.known.Store(&map[string]*trust{})
	return s, nil
}

// Close releases the Kafka client.
func (s *Seals) Close() { s.admin.Close() }

// refreshInterval is how often Seals looks for the first announcement of a topic. Records of a topic
// without one are not checked.
const refreshInterval = time.Second

var (
	errUnsealed       = errors.New("it has no seal, so the relay did not publish it")
	errOtherSystem    = errors.New("it has the seal of another system, so the relay did not publish it")
	errModified       = errors.New("its seal does not match its content: it was changed or forged")
	errWrongPartition = errors.New("a copy of an event in another partition than its key's")
)

// CheckSeal returns an error if the relay of the topic did not publish the record. sealed reports
// whether the record has a valid seal: records from before the first announcement pass without one.
// The error wraps event.ErrNotEvent, or registry.ErrUnavailable if the announcements cannot be read
// now.
func (s *Seals) CheckSeal(ctx context.Context, r registry.Record, e event.Event) (sealed bool, err error) {
	if s.services[r.Topic] == "" {
		return false, nil
	}
	// If the result is not final, read new announcements once and judge again.
	for refreshed := false; ; refreshed = true {
		sealed, final, bad := s.judge(r, e)
		switch {
		case !final && !refreshed:
		case bad != nil:
			return false, fmt.Errorf("%w: %w", event.ErrNotEvent, bad)
		default:
			return sealed, nil
		}
		since := time.Now()
		if bad == nil { // nothing is announced yet
			since = since.Add(-refreshInterval)
		}
		if err := s.refresh(ctx, r.Topic, since); err != nil {
			return false, fmt.Errorf("%w: %w", registry.ErrUnavailable, err)
		}
	}
}

// Seal returns the header that seals an event of a topic under a name that is trusted. The event must
// have been sealed before: it is for an event whose record the log has deleted.
func (s *Seals) Seal(ctx context.Context, topic string, e event.Event) (event.Header, error) {
	if err := s.refresh(ctx, topic, time.Now().Add(-refreshInterval)); err != nil {
		return event.Header{}, err
	}
	t := (*s.known.Load())[topic]
	if t == nil || len(t.names) == 0 {
		return event.Header{}, fmt.Errorf("no seal of topic %s is known", topic)
	}
	return e.Seal(slices.Min(slices.Collect(maps.Keys(t.names)))), nil
}

// judge checks a record against the announcements read so far. final is false if newer
// announcements could change the result.
func (s *Seals) judge(r registry.Record, e event.Event) (sealed, final bool, bad error) {
	t := (*s.known.Load())[r.Topic]
	if t == nil {
		return false, false, nil
	}
	name, ok := event.SealName(r.Headers)
	switch {
	case ok && t.names[string(name)]:
		if !e.SealMatches(r.Headers) {
			return false, true, errModified
		}
		if t.conflict != "" { // another system may have sealed a record that the relay would not
			return false, true, nil
		}
		// The relay derives the partition and this header from the same number of partitions.
		// Records of earlier versions have no such header.
		if n := kafka.PartitionsOf(r.Headers); n > 0 && kafka.Partition(r.Key, n) != r.Partition {
			return false, true, errWrongPartition
		}
		return true, true, nil
	case t.conflict != "":
		return false, false, nil
	// Records before the floor may be from an earlier version, which did not seal.
	case r.Offset < t.floors[r.Partition]:
		return false, true, nil
	case !t.announced && (!ok || !t.strict):
		return false, false, nil
	case !ok:
		return false, true, errUnsealed
	default:
		return false, false, errOtherSystem
	}
}

// refresh reads new announcements and decides again what to trust for a topic. It does nothing if it
// has done so after since: concurrent callers share one read.
func (s *Seals) refresh(ctx context.Context, topic string, since time.Time) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refreshed[topic].After(since) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the relays' announcements: %w", err)
		}
	}()
	now := time.Now()
	if err := s.readKeys(ctx); err != nil {
		return err
	}
	info, err := s.admin.Topic(ctx, topic)
	if err != nil {
		return err
	}
	// An announcement is visible a moment after its transaction is committed. The first records that it
	// concerns may be visible before, so wait for transactions that are open now.
	end, err := s.admin.HighWatermarks(ctx, PositionsTopic)
	if err != nil {
		return err
	}
	if shorter(end, s.next) { // the topic was deleted and created again
		s.next = nil
	}
	err = kafka.ReadAll(ctx, s.cfg, PositionsTopic, s.next, end, func(m kafka.Message) error {
		if service, name, ok := announcementKey(m); ok && s.announced[service] != nil {
			s.announced[service].add(m, name, s.keys[service])
		}
		return nil
	})
	if err != nil {
		return err
	}
	service := s.services[topic]
	s.decide(topic, s.announced[service].trust(s.keys[service], topic, info.ID))
	s.next, s.refreshed[topic] = end, now
	return nil
}

// readKeys derives the public keys of the stores that it does not have yet.
func (s *Seals) readKeys(ctx context.Context) error {
	for service, store := range s.stores {
		if s.keys[service] != "" {
			continue
		}
		secret, err := store.Secret(ctx)
		if err != nil {
			return err
		}
		var key ed25519.PrivateKey
		if key, err = sealKey(secret, service); err != nil {
			return err
		}
		s.keys[service] = publicKey(key)
	}
	return nil
}

// decide replaces the trust of a topic, and logs when its check becomes impossible.
func (s *Seals) decide(topic string, t *trust) {
	known := maps.Clone(*s.known.Load()) // concurrent checks read the current map
	if before := known[topic]; t.conflict != "" && (before == nil || before.conflict == "") {
		s.logger().Error("relay: seals are not checked", "topic", topic, "reason", t.conflict, "remedy", s.remedy())
	}
	known[topic] = t
	s.known.Store(&known)
}

// remedy returns the advice for an operator if two systems announce seals.
func (s *Seals) remedy() string {
	return "remove one of the announcements from topic " + PositionsTopic +
		" and restart this process, or restrict writes to that topic"
}

func (s *Seals) logger() *slog.Logger {
	if s.cfg.Logger == nil {
		return slog.Default()
	}
	return s.cfg.Logger
}

// Settings returns a fault for each topic whose seals cannot be checked.
func (s *Seals) Settings(context.Context) (faults []settings.Fault, err error) {
	for topic, t := range *s.known.Load() {
		if t.conflict != "" {
			faults = append(faults, settings.Fault{
				Resource: "topic " + topic, Setting: "seals", Value: t.conflict, Want: "announced by one system",
				Effect: "records that the relay did not publish may be accepted as events", Remedy: s.remedy(),
			})
		}
	}
	return faults, nil
}
