package relay

import (
	"context"
	"crypto/ed25519"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// checkInterval is how often a running relay checks that its announcements are still the last
// records under their keys, and the longest that it waits for the store at a time.
const checkInterval = time.Minute

// ownAnnouncements is what a relay knows about the announcements of its store. Compaction keeps only
// the last record of a key. So each announcement must be the last record under its key, and is
// written again after an invalid record.
type ownAnnouncements struct {
	key  ed25519.PrivateKey // signs announcements
	name string             // under which this relay seals
	// own are this store's announcements, by name. A topic that was restored under another id has
	// several.
	own  map[string]announcement
	lost map[string]bool // names of announcements to write again

	// State of the reading of PositionsTopic.
	positionsID string          // id of the topic when it was last read
	next        map[int32]int64 // offsets to read from; nil before the first read
	checked     time.Time       // when checkAnnouncements last succeeded
}

// newOwnAnnouncements returns the state of a session that has read no announcements yet.
func newOwnAnnouncements(secret []byte, service, topicID string) (*ownAnnouncements, error) {
	key, err := sealKey(secret, service)
	if err != nil {
		return nil, err
	}
	return &ownAnnouncements{
		key: key, name: sealName(publicKey(key), topicID), own: map[string]announcement{}, lost: map[string]bool{},
	}, nil
}

// loadAnnouncements prepares the announcements of a session. begun reports whether relays have
// published to the topic before. If so, records before the floors may have no seal and remain valid.
// If not, every record on the topic without a seal is invalid, and the floors are 0.
func (in *inspector) loadAnnouncements(ctx context.Context, c *checkpoint, begun bool) (*ownAnnouncements, error) {
	a, err := newOwnAnnouncements(in.secret, in.cfg.Aggregate.Service, in.info.ID)
	if err != nil {
		return nil, err
	}
	seen, err := in.checkAnnouncements(ctx, in.admin, a)
	if err != nil {
		return nil, err
	}
	// checkAnnouncements keeps some of the invalid records, and only counts the others.
	for _, s := range seen.first {
		in.invalid.add(s.record, s.reason)
	}
	in.invalid.count += seen.count - uint64(len(seen.first))
	if _, ok := a.own[a.name]; ok {
		return a, nil
	}
	floors := make([]int64, in.info.Partitions)
	switch {
	case c != nil && c.seal == a.name && len(c.sealFloors) > 0: // the announcement was lost
		floors = c.sealFloors
	case begun && len(a.own) > 0: // the topic was restored under another id
		for _, before := range a.own {
			for p := range min(len(floors), len(before.floors)) {
				floors[p] = max(floors[p], before.floors[p])
			}
		}
	case begun:
		for p := range floors {
			floors[p] = in.end[int32(p)]
		}
	}
	a.own[a.name] = announcement{name: a.name, key: publicKey(a.key), topicID: in.info.ID, floors: floors}
	a.lost[a.name] = true
	return a, nil
}

// checkAnnouncements reads the new records of PositionsTopic. It notes which announcements are lost,
// and returns the invalid records among the new ones. The first call of a session reads the whole
// topic. It then omits invalid records before the store's last valid one, because an earlier session
// has reported them.
func (r *Relay) checkAnnouncements(
	ctx context.Context, admin *kafka.Admin, a *ownAnnouncements,
) (seen invalidRecords, err error) {
	topic, err := withTimeout(ctx, func(ctx context.Context) (kafka.TopicInfo, error) {
		return admin.Topic(ctx, PositionsTopic)
	})
	if err != nil {
		return invalidRecords{}, err
	}
	end, err := withTimeout(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return admin.EndOffsets(ctx, PositionsTopic)
	})
	if err != nil {
		return invalidRecords{}, err
	}
	secret, first := []byte(nil), a.next == nil
	if first {
		if secret, err = withTimeout(ctx, r.cfg.Store.Secret); err != nil {
			return invalidRecords{}, err
		}
	} else if topic.ID != a.positionsID || shorter(end, a.next) { // the topic was recreated without the announcements
		a.next = nil
		for name := range a.own {
			a.lost[name] = true
		}
	}
	wanted := publicKey(a.key)
	err = kafka.ReadAll(ctx, r.cfg.Kafka, PositionsTopic, a.next, end, func(m kafka.Message) error {
		service, name, ok := announcementKey(m)
		switch {
		case first && string(m.Key) == r.cfg.Aggregate.Service && signed(secret, m):
			seen = invalidRecords{}
			return nil
		case !ok || service != r.cfg.Aggregate.Service:
			return nil
		}
		found, err := parseAnnouncement(m, wanted)
		if err == nil {
			a.own[name] = found
			delete(a.lost, name)
			if first {
				seen = invalidRecords{}
			}
			return nil
		}
		// Anything else under this name hides the announcement after compaction.
		if _, mine := a.own[name]; mine || name == a.name {
			a.lost[name] = true
		}
		seen.add(m, err)
		return nil
	})
	if err != nil {
		return invalidRecords{}, err
	}
	a.positionsID, a.next, a.checked = topic.ID, end, time.Now()
	return seen, nil
}

// shorter reports whether a log ends before the offsets that were read from it.
func shorter(end, read map[int32]int64) bool {
	for p, next := range read {
		if end[p] < next {
			return true
		}
	}
	return false
}

// maintainAnnouncements checks the announcements at most every checkInterval, and writes lost ones
// again.
func (r *Relay) maintainAnnouncements(
	ctx context.Context, p *kafka.TransactionalProducer, admin *kafka.Admin, a *ownAnnouncements,
) error {
	if time.Since(a.checked) < r.checkInterval {
		return nil
	}
	seen, err := r.checkAnnouncements(ctx, admin, a)
	if err != nil {
		return err
	}
	r.writeDeadLetters(ctx, seen)
	r.report(func(p *Progress) { p.InvalidRecords += seen.count })
	return r.announce(ctx, p, a)
}

// announce writes, in one transaction, the announcements that are lost or were never written.
func (r *Relay) announce(ctx context.Context, p *kafka.TransactionalProducer, a *ownAnnouncements) error {
	if len(a.lost) == 0 {
		return nil
	}
	if err := p.Begin(); err != nil {
		return err
	}
	ctx, cancel := withGrace(ctx, 3*time.Second) // as in commit
	defer cancel()
	ctx, late := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer late()
	for name := range a.lost {
		if err := p.Produce(ctx, a.own[name].record(r.cfg.Aggregate.Service, a.key)); err != nil {
			return err
		}
	}
	if err := p.Commit(ctx); err != nil {
		return err
	}
	clear(a.lost)
	return nil
}
