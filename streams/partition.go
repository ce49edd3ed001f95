package streams

import (
	"cmp"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// partition tracks one assigned partition, from the offset where this assignment began. Workers
// finish its records in any order. The position is the end of the consecutive finished records at
// the front of slots.
type partition struct {
	topic      string
	id         int32
	watermarks *Watermarks

	// provenTo and broken belong to the poll loop; see Runtime.repair. Below provenTo, this
	// assignment has read the log from its beginning, to find out whether the log lacks an event.
	// broken are the streams of which it does.
	provenTo int64
	broken   map[string]bool

	parking *parking // set before the first record is read

	// archived reports that the partition is read from the archive, and not from the log. Only the poll
	// loop changes it, with Runtime.mu held, so the poll loop reads it without the lock.
	archived bool

	measuredFrom int64 // the ages of events before this offset are not measured

	// mu protects the fields below. The poll loop adds records, and workers finish them.
	mu    sync.Mutex
	slots []slot // records that were read and are not part of the position yet, in offset order
	base  uint64 // number of slots[0], counted from the start of the assignment
	// applied is the position that the sink has reached.
	applied  Applied
	saved    Applied    // position that the sink has stored
	read     int64      // highest offset read, plus one
	revoked  bool       // the partition is no longer assigned; its records are dropped
	inFlight int        // records that are inside the sink
	quiet    *sync.Cond // signalled when inFlight becomes 0
}

// slot is a record, or a range of offsets without records.
type slot struct {
	next       int64          // offset after it
	pos        event.Position // store position of the event; zero if it is not an event
	asOf       time.Time      // when the event was recorded
	partitions int32          // number of partitions that keys are spread over; 0 if unknown
	done       bool
}

// newPartition returns a partition that is read from from.at. It publishes that position in
// watermarks.
func newPartition(topic string, id int32, from start, watermarks *Watermarks) *partition {
	p := &partition{
		topic: topic, id: id, watermarks: watermarks,
		applied: from.at, saved: from.saved, read: from.at.Next, broken: map[string]bool{}, parking: parkingOf(nil),
		measuredFrom: from.measuredFrom(),
	}
	p.quiet = sync.NewCond(&p.mu)
	watermarks.set(topic, id, from.at)
	return p
}

// add registers a record that was read and returns its number, which identifies it in leave.
func (p *partition) add(offset int64, e event.Event, partitions int32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = append(p.slots, slot{next: offset + 1, pos: e.Position, asOf: e.RecordedAt, partitions: partitions})
	p.read = offset + 1
	p.watermarks.reached(p.topic, p.id, p.read)
	return p.base + uint64(len(p.slots)) - 1
}

// end registers that there are no records between the last one read and an offset. The markers of
// transactions are not records. Without this, the sink would seem to lag forever.
func (p *partition) end(offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset <= p.read {
		return
	}
	p.read = offset
	p.slots = append(p.slots, slot{next: offset, done: true})
	p.advance()
}

// enter registers that a record is passed to the sink. It returns false if the partition was
// revoked. Each call that returns true is followed by one of leave.
func (p *partition) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.revoked {
		return false
	}
	p.inFlight++
	return true
}

// leave registers that the sink has returned. applied reports whether it took the record. If
// isEvent is false, the record is passed, but its store position does not count: the sink has no
// such event.
func (p *partition) leave(number uint64, applied, isEvent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left()
	if applied {
		s := &p.slots[number-p.base]
		// The offset is passed, but the watermark must not move to an event that the sink does not
		// have.
		if s.done = true; !isEvent {
			s.pos = event.Position{}
		}
		p.advance()
	}
}

// leaveRetried is leave for a dead letter that was applied again. It does not move the position.
func (p *partition) leaveRetried() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left()
}

// left counts a record that is not inside the sink any more.
func (p *partition) left() {
	p.inFlight--
	if p.inFlight == 0 {
		p.quiet.Broadcast()
	}
}

// advance moves the position over the finished records at the front.
func (p *partition) advance() {
	n := 0
	for n < len(p.slots) && p.slots[n].done {
		s := p.slots[n]
		p.applied.Next = s.next
		if !s.pos.IsZero() {
			p.applied.Watermark, p.applied.AsOf = s.pos, s.asOf
			p.applied.Partitions = cmp.Or(s.partitions, p.applied.Partitions)
		}
		n++
	}
	if n == 0 {
		return
	}
	p.slots, p.base = p.slots[n:], p.base+uint64(n)
	if len(p.slots) == 0 {
		p.slots = nil // releases the memory of the finished records
	}
	// After a revocation, another process may be further.
	if !p.revoked {
		p.watermarks.set(p.topic, p.id, p.applied)
	}
}

// drain revokes the partition. Waiting records are dropped, because the next owner reads them.
// drain blocks until no record is inside the sink.
func (p *partition) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked = true
	for p.inFlight > 0 {
		p.quiet.Wait()
	}
}

// unsaved returns the move that the sink has not stored yet. ok is false if there is none.
func (p *partition) unsaved() (m Move, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A position without a topic id, saved by an earlier version, is saved again with the id.
	changed := p.applied.Next != p.saved.Next || p.applied.Topic != p.saved.Topic
	return Move{Partition: p.id, From: p.saved, To: p.applied}, changed
}

// setSaved records the position that the sink has stored.
func (p *partition) setSaved(a Applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = a
}

// savedAt returns the position that the sink has stored.
func (p *partition) savedAt() Applied {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saved
}

// readTo returns the offset after the last record read.
func (p *partition) readTo() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read
}

// topicPartition returns the topic and the number of the partition.
func (p *partition) topicPartition() kafka.TopicPartition {
	return kafka.TopicPartition{Topic: p.topic, Partition: p.id}
}

// topicID returns the id of the topic that the partition belongs to, "" if unknown.
func (p *partition) topicID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied.Topic
}
