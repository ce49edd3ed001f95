package event

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/cespare/xxhash/v2"
)

// A seal marks a record as published by the relay of its store. It consists of a name, which the
// relay announces on the log, and a checksum of the event under that name. It lets readers recognise
// the store's events without querying the store. Handmade records, edited copies and records of
// other systems have no valid seal.
//
// A seal is not a signature: any client that can read the name can compute one. Broker ACLs and the
// comparison with the store protect against that.
const headerSeal = "ce_storeseal" // "name:sum", the sum in 16 hexadecimal digits

// sumDigits is the length of a sum.
const sumDigits = 16

// Seal returns the header that seals the event's record under a name.
func (e Event) Seal(name string) Header {
	b := make([]byte, 0, len(name)+1+sumDigits)
	b = append(append(b, name...), ':')
	return Header{headerSeal, appendSum(b, e.sum(name))}
}

// appendSum appends a sum in hexadecimal.
func appendSum(b []byte, sum uint64) []byte {
	var bits [8]byte
	binary.BigEndian.PutUint64(bits[:], sum)
	return hex.AppendEncode(b, bits[:])
}

// SealName returns the name in a record's seal, which may not be UTF-8. ok is false if the record has
// no seal.
func SealName(headers []Header) (name []byte, ok bool) {
	name, _, ok = seal(headers)
	return name, ok
}

// seal returns the two parts of the record's seal.
func seal(headers []Header) (name, sum []byte, ok bool) {
	for i := len(headers) - 1; i >= 0; i-- { // the seal is the last header
		if headers[i].Key == headerSeal {
			return bytes.Cut(headers[i].Value, []byte(":"))
		}
	}
	return nil, nil, false
}

// SealMatches reports whether the seal in the record's headers matches the event.
func (e Event) SealMatches(headers []Header) bool {
	name, sum, ok := seal(headers)
	if !ok || len(sum) != sumDigits {
		return false
	}
	var want [sumDigits]byte
	return bytes.Equal(appendSum(want[:0], e.sum(string(name))), sum)
}

// sum covers all fields of the event. Strings are prefixed with their length, so that moving a
// character from one field to the next changes the sum.
func (e Event) sum(name string) uint64 {
	var buffer [512]byte // keeps nearly all events off the heap
	b := buffer[:0]
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	moment := func(t time.Time) { b = binary.BigEndian.AppendUint64(b, uint64(t.UnixMicro())) }
	text(name)
	b = append(b, e.ID[:]...)
	text(e.Aggregate)
	text(e.Stream)
	text(e.Type)
	text(e.CorrelationID)
	text(e.CausationID)
	text(e.TraceParent)
	moment(e.OccurredAt)
	moment(e.RecordedAt)
	b = binary.BigEndian.AppendUint64(b, e.Version)
	b = binary.BigEndian.AppendUint64(b, e.Position.Transaction)
	b = binary.BigEndian.AppendUint64(b, e.Position.Sequence)
	b = binary.BigEndian.AppendUint64(b, xxhash.Sum64(e.Data))
	return xxhash.Sum64(b)
}
