package serving

import (
	"math"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
)

// Vectors in Protobuf's wire format, without messages in between: a message for each value, and what
// the codec does with it, cost more than to compute the vectors. An answer carries them as fields that
// its message does not know, which the codec copies. Other formats, such as JSON, need the messages.

// binaryTypes are the content types of requests whose answer is in the wire format.
var binaryTypes = []string{"application/proto", "application/grpc", "application/grpc+proto",
	"application/grpc-web", "application/grpc-web+proto"}

// wantsBinary reports whether the answer to a request is in the wire format.
func wantsBinary(h http.Header) bool { return slices.Contains(binaryTypes, h.Get("Content-Type")) }

// The numbers of fields in the contract.
const (
	responseVectors = 3

	vectorEntity, vectorValues, vectorEventTime, vectorMoment         = 1, 2, 3, 4
	valueStatus, valueInteger, valueNumber, valueText, valueTextsList = 1, 2, 3, 4, 5
	textsItems                                                        = 1
	timestampSeconds, timestampNanos                                  = 1, 2
)

// tag appends the tag of a field, whose number is less than 16.
func tag(b []byte, number protowire.Number, kind protowire.Type) []byte {
	return append(b, byte(protowire.EncodeTag(number, kind)))
}

// appendVector appends the field of a response that has the vector of an entity. body is memory for its
// content, which is returned to be used again.
func appendVector(b, body []byte, entity string, v *online.Vector, moment uint32) (_, _ []byte) {
	body = body[:0]
	if entity != "" {
		body = protowire.AppendString(tag(body, vectorEntity, protowire.BytesType), entity)
	}
	for i := range v.Values {
		body = appendValueField(body, v, i)
	}
	if v.Newest != 0 {
		body = appendTimestamp(tag(body, vectorEventTime, protowire.BytesType), time.UnixMicro(v.Newest))
	}
	if moment != 0 {
		body = protowire.AppendVarint(tag(body, vectorMoment, protowire.VarintType), uint64(moment))
	}
	return protowire.AppendBytes(tag(b, responseVectors, protowire.BytesType), body), body
}

// appendValueField appends the field of a vector that has its i-th value.
func appendValueField(b []byte, v *online.Vector, i int) []byte {
	r := &v.Values[i]
	size := 2 // of the status
	switch r.Kind {
	case exact.IntResult:
		size += 1 + protowire.SizeVarint(uint64(r.Int))
	case exact.FloatResult:
		size += 1 + protowire.SizeFixed64()
	case exact.TextResult:
		size += 1 + protowire.SizeBytes(len(r.Text))
	case exact.TextsResult:
		size += 1 + protowire.SizeBytes(sizeOfTexts(r.Texts))
	}
	b = protowire.AppendVarint(tag(b, vectorValues, protowire.BytesType), uint64(size))
	b = protowire.AppendVarint(tag(b, valueStatus, protowire.VarintType), uint64(statusOf(v, i)))
	switch r.Kind {
	case exact.IntResult:
		b = protowire.AppendVarint(tag(b, valueInteger, protowire.VarintType), uint64(r.Int))
	case exact.FloatResult:
		b = protowire.AppendFixed64(tag(b, valueNumber, protowire.Fixed64Type), math.Float64bits(r.Float))
	case exact.TextResult:
		b = protowire.AppendString(tag(b, valueText, protowire.BytesType), r.Text)
	case exact.TextsResult:
		b = protowire.AppendVarint(tag(b, valueTextsList, protowire.BytesType), uint64(sizeOfTexts(r.Texts)))
		for _, text := range r.Texts {
			b = protowire.AppendString(tag(b, textsItems, protowire.BytesType), text)
		}
	}
	return b
}

// sizeOfTexts returns the size of a list of texts.
func sizeOfTexts(texts []string) (size int) {
	for _, text := range texts {
		size += 1 + protowire.SizeBytes(len(text))
	}
	return size
}

// appendTimestamp appends a google.protobuf.Timestamp and its length.
func appendTimestamp(b []byte, at time.Time) []byte {
	seconds, nanos := uint64(at.Unix()), uint64(at.Nanosecond())
	size := 0
	if seconds != 0 {
		size += 1 + protowire.SizeVarint(seconds)
	}
	if nanos != 0 {
		size += 1 + protowire.SizeVarint(nanos)
	}
	b = protowire.AppendVarint(b, uint64(size))
	if seconds != 0 {
		b = protowire.AppendVarint(tag(b, timestampSeconds, protowire.VarintType), seconds)
	}
	if nanos != 0 {
		b = protowire.AppendVarint(tag(b, timestampNanos, protowire.VarintType), nanos)
	}
	return b
}
