package customer360

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
)

// SegmentTopic has the changes of membership: a SegmentChange for each time that somebody enters or
// leaves a segment. It is compacted by segment|customer. So it is also the memory of who is a
// member: there is no other one that could differ from what was published.
const SegmentTopic = "millrace.segments"

// segmentTopic returns the topic as it is created. It has one partition, because one process writes
// it, and changes of different customers are then in order.
func segmentTopic() kafka.Topic {
	return kafka.Topic{Name: SegmentTopic, Partitions: 1, Compacted: true}
}

// membership is whether a customer is a member of a segment, and how often that has changed.
type membership struct {
	member  bool
	version uint64
	since   time.Time
}

// Members is the content of SegmentTopic in memory, about 200 bytes for each pair of a segment and
// a customer who has ever been a member. The versions of the view in a process share it, so that a
// version that is swapped in knows the members at once. It is safe for concurrent use.
type Members struct {
	// mu protects the fields below.
	mu       sync.Mutex
	segments map[string]map[string]membership // by segment and customer
	next     int64                            // offset of the topic to read next
	ready    bool                             // the topic was read to its end once
	changed  chan struct{}                    // closed at the next change of next
}

// NewMembers returns Members that know nothing yet. Work fills them.
func NewMembers() *Members {
	return &Members{segments: map[string]map[string]membership{}, changed: make(chan struct{})}
}

// add adds a change. A change that is not newer is ignored, so it may be added more than once.
func (m *Members) add(c *customer360v1.SegmentChange) {
	m.mu.Lock()
	defer m.mu.Unlock()
	of := m.segments[c.GetSegment()]
	if of == nil {
		of = map[string]membership{}
		m.segments[c.GetSegment()] = of
	}
	if of[c.GetCustomerId()].version < c.GetVersion() {
		of[c.GetCustomerId()] = membership{c.GetMember(), c.GetVersion(), c.GetChangedAt().AsTime()}
	}
}

// get returns the membership of a customer.
func (m *Members) get(segment, customer string) membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.segments[segment][customer]
}

// of returns the names of the segments that a customer is a member of, sorted.
func (m *Members) of(customer string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name, customers := range m.segments {
		if customers[customer].member {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// count returns the number of members of a segment.
func (m *Members) count(segment string) (n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.segments[segment] {
		if c.member {
			n++
		}
	}
	return n
}

// page returns the members with the smallest ids after one, sorted, and whether there are more.
func (m *Members) page(segment, after string, size int) (ids []string, more bool) {
	m.mu.Lock()
	for id, c := range m.segments[segment] {
		if c.member && id > after {
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	slices.Sort(ids)
	if more = len(ids) > size; more {
		ids = ids[:size]
	}
	return ids, more
}

// all returns the members of a segment.
func (m *Members) all(segment string) (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, c := range m.segments[segment] {
		if c.member {
			ids = append(ids, id)
		}
	}
	return ids
}

// names returns the names of all segments that have ever had a member.
func (m *Members) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.segments {
		names = append(names, name)
	}
	return names
}

// isReady reports whether the topic was read to its end once.
func (m *Members) isReady() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

// reached records that everything before an offset was added.
func (m *Members) reached(next int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next, m.ready = max(m.next, next), true
	close(m.changed)
	m.changed = make(chan struct{})
}

// await blocks until everything before an offset was added.
func (m *Members) await(ctx context.Context, end int64) error {
	for {
		m.mu.Lock()
		done, changed := m.ready && m.next >= end, m.changed
		m.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be read: %w", SegmentTopic, context.Cause(ctx))
		}
	}
}

// followEvery is how often a process looks for changes of membership that another one has written.
const followEvery = 200 * time.Millisecond

// follow reads the topic until ctx ends, and then returns nil. It logs errors and retries.
func (m *Members) follow(ctx context.Context, cfg kafka.Config, logger *slog.Logger) error {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return fmt.Errorf("follow %s: %w", SegmentTopic, err)
	}
	defer admin.Close()
	failed := ""
	for {
		switch err := m.catchUp(ctx, cfg, admin); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = ""
		// A process that only reads may be older than the topic.
		case errors.Is(err, kafka.ErrUnknownTopic):
		case err.Error() != failed: // log an error once, not at every poll
			failed = err.Error()
			logger.Warn("segments: reading changes of membership failed; retrying", "topic", SegmentTopic, "error", err)
		}
		if !backoff.Sleep(ctx, followEvery) {
			return nil
		}
	}
}

// catchUp reads what is on the topic and was not read yet.
func (m *Members) catchUp(ctx context.Context, cfg kafka.Config, admin *kafka.Admin) error {
	ends, err := admin.EndOffsets(ctx, SegmentTopic)
	if err != nil {
		return err
	}
	m.mu.Lock()
	from := m.next
	m.mu.Unlock()
	if ends[0] > from || !m.isReady() {
		err = kafka.ReadAll(ctx, cfg, SegmentTopic, map[int32]int64{0: from}, map[int32]int64{0: ends[0]},
			func(r kafka.Message) error {
				// Nobody else writes this topic, so what cannot be read is damage. It concerns one
				// customer, and does not stop the others.
				if c, err := decodeChange(r.Value); err == nil {
					m.add(c)
				}
				return nil
			})
		if err != nil {
			return err
		}
		m.reached(ends[0])
	}
	return nil
}

// decodeChange decodes a value of the topic.
func decodeChange(value []byte) (*customer360v1.SegmentChange, error) {
	c := &customer360v1.SegmentChange{}
	if err := proto.Unmarshal(value, c); err != nil {
		return nil, fmt.Errorf("read a change of membership: %w", err)
	}
	if c.GetSegment() == "" || c.GetCustomerId() == "" || c.GetVersion() == 0 {
		return nil, errors.New("read a change of membership: it has no segment, customer or version")
	}
	return c, nil
}

// record returns the record of a change.
func record(c *customer360v1.SegmentChange) (kafka.Record, error) {
	value, err := proto.Marshal(c)
	if err != nil {
		return kafka.Record{}, fmt.Errorf("marshal a change of membership: %w", err)
	}
	return kafka.Record{
		Topic: SegmentTopic, Partition: 0, Key: []byte(c.GetSegment() + "|" + c.GetCustomerId()), Value: value,
		Headers: []event.Header{{Key: "content-type", Value: []byte(event.ContentType)}},
	}, nil
}

// changes returns the changes from what is known of a customer to what should be, by segment.
func (m *Members) changes(customer string, should map[string]bool, now time.Time) []*customer360v1.SegmentChange {
	names := m.names()
	for name := range should {
		names = append(names, name)
	}
	slices.Sort(names)
	var all []*customer360v1.SegmentChange
	for _, name := range slices.Compact(names) {
		if is := m.get(name, customer); is.member != should[name] {
			all = append(all, &customer360v1.SegmentChange{
				Segment: name, CustomerId: customer, Member: should[name], Version: is.version + 1,
				ChangedAt: timestamppb.New(now),
			})
		}
	}
	return all
}
