package streams

import (
	"cmp"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
)

// partition follows one assigned partition from the offset where this assignment began. Workers
// finish its records in any order; its position is the end of the finished run at the front.
type partition struct {
	topic      string
	id         int32
	watermarks *Watermarks

	// provenTo and broken belong to the poll loop. Below provenTo this assignment has read the log
	// from its beginning, to see whether a gap is the log's own; broken are the streams of which
	// that is known.
	provenTo int64
	broken   map[string]bool

	mu       sync.Mutex
	slots    []slot // read and not yet part of the finished run, in offset order
	base     uint64 // number of slots[0] since the assignment began
	applied  Applied
	saved    Applied // what the sink holds
	read     int64   // highest offset read, plus one
	revoked  bool
	inFlight int // records inside the sink now
	quiet    *sync.Cond
}

type slot struct {
	next       int64
	pos        event.Position
	asOf       time.Time
	partitions int32
	done       bool
}

func newPartition(topic string, id int32, from start, watermarks *Watermarks) *partition {
	p := &partition{topic: topic, id: id, watermarks: watermarks, applied: from.at, saved: from.saved, read: from.at.Next, broken: map[string]bool{}}
	p.quiet = sync.NewCond(&p.mu)
	watermarks.set(topic, id, from.at)
	return p
}

// add records a record and returns its number, by which done knows it.
func (p *partition) add(offset int64, e event.Event, partitions int32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = append(p.slots, slot{next: offset + 1, pos: e.Position, asOf: e.RecordedAt, partitions: partitions})
	p.read = offset + 1
	p.watermarks.reached(p.topic, p.id, p.read)
	return p.base + uint64(len(p.slots)) - 1
}

// end records that nothing is between the records read so far and an offset: the markers that
// transactions leave on the log are not records, and without this the sink would seem to lag
// forever.
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

// enter lets a record into the sink, unless the partition was taken away meanwhile. Every enter
// that returns true is followed by one leave.
func (p *partition) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.revoked {
		return false
	}
	p.inFlight++
	return true
}

// leave says that the sink has let go of a record. One that turned out to be no event, whatever its
// envelope claims, is passed, but its position is nobody's.
func (p *partition) leave(number uint64, applied, isEvent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if p.inFlight == 0 {
		p.quiet.Broadcast()
	}
	if applied {
		s := &p.slots[number-p.base]
		if s.done = true; !isEvent {
			s.pos = event.Position{}
		}
		p.advance()
	}
}

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
		p.slots = nil // lets the finished run's memory go
	}
	if !p.revoked {
		p.watermarks.set(p.topic, p.id, p.applied)
	}
}

// drain stops the partition: records that wait are dropped, for whoever owns it next will read
// them, and those inside the sink are waited for.
func (p *partition) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked = true
	for p.inFlight > 0 {
		p.quiet.Wait()
	}
}

// unsaved returns the move that the sink has not been told of; ok is false if there is none.
func (p *partition) unsaved() (m Move, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Move{Partition: p.id, From: p.saved, To: p.applied}, p.applied.Next != p.saved.Next || p.applied.Topic != p.saved.Topic
}

func (p *partition) setSaved(a Applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = a
}

func (p *partition) savedAt() Applied {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saved
}

func (p *partition) readTo() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read
}

// of returns the id of the topic that the partition is read from.
func (p *partition) of() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied.Topic
}
