// Package digest reduces the content of a store, a topic, a table or a view (a side, in package
// verify) to a count and a hash. Neither depends on the order of reading, so sides can be compared
// without moving their data. Digest has one Sum per stream, so a difference can be attributed to a
// stream.
//
// AppendEvent defines the canonical bytes of an event. Every side must add the same bytes for the
// same content.
package digest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"time"

	"github.com/millrace/millrace/event"
)

// Sum is a count of items and the sum of their hashes modulo 2^128. Unlike XOR, a sum notices an
// item that occurs twice.
type Sum struct {
	Count  uint64
	Hi, Lo uint64
}

// Add adds one item's content.
func (s *Sum) Add(content []byte) {
	h := sha256.Sum256(content)
	s.Merge(Sum{1, binary.BigEndian.Uint64(h[0:8]), binary.BigEndian.Uint64(h[8:16])})
}

// Merge adds another sum.
func (s *Sum) Merge(o Sum) {
	var carry uint64
	s.Lo, carry = bits.Add64(s.Lo, o.Lo, 0)
	s.Hi, _ = bits.Add64(s.Hi, o.Hi, carry)
	s.Count += o.Count
}

// Hash returns the hash in hexadecimal.
func (s Sum) Hash() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], s.Hi)
	binary.BigEndian.PutUint64(b[8:], s.Lo)
	return hex.EncodeToString(b[:])
}

// Digest is the content of one side, by stream.
type Digest struct {
	Streams map[string]Sum // by aggregate id

	// Invalid counts records that are not events. No sum includes them.
	Invalid      uint64
	FirstInvalid string // location of the first one, and the reason
}

// AddInvalid counts a record that is not an event. It calls describe for the first one only, because
// a topic may have many.
func (d *Digest) AddInvalid(describe func() string) {
	if d.Invalid++; d.Invalid == 1 {
		d.FirstInvalid = describe()
	}
}

// New returns an empty digest.
func New() *Digest { return &Digest{Streams: map[string]Sum{}} }

// Add adds one item of a stream.
func (d *Digest) Add(stream string, content []byte) {
	s := d.Streams[stream]
	s.Add(content)
	d.Streams[stream] = s
}

// AddEvent adds an event. Its position is not content, because it belongs to the store.
func (d *Digest) AddEvent(e event.Event) { d.Add(e.Stream, AppendEvent(nil, e)) }

// Total returns the sum over all streams.
func (d *Digest) Total() Sum {
	var t Sum
	for _, s := range d.Streams {
		t.Merge(s)
	}
	return t
}

// AppendEvent appends the canonical form of an event. Strings are preceded by their length, so no two
// different events have the same form.
func AppendEvent(b []byte, e event.Event) []byte {
	b = append(b, e.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Version)
	b = appendTime(b, e.OccurredAt)
	b = appendTime(b, e.RecordedAt)
	for _, s := range []string{
		e.Aggregate, e.Stream, e.Type, e.CorrelationID, e.CausationID, e.TraceParent, string(e.Data),
	} {
		b = AppendString(b, s)
	}
	return b
}

// AppendString appends the length of s and s.
func AppendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// appendTime appends a time in microseconds, the finest unit that every side has.
func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixMicro()))
}
