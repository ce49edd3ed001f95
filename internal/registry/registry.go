// Package registry encodes and decodes the values of Kafka records in formats that other systems
// read: plain Protobuf, or Protobuf or Avro with the frame of Confluent's schema registry. Subjects
// are named after topics ("<topic>-value").
//
// Inside Millrace, an event's data is always its Protobuf message. An Encoder converts it just
// before it is produced, and a Decoder converts it back to the same bytes right after it is
// consumed. So digests of store, topic and tables stay comparable, whatever the codec. A reader
// needs no setting except the registry's address, because every value shows how it was written. A
// topic may therefore change its codec at any time.
//
// Schemas are derived from Protobuf descriptors: a file as text with its imports as references
// (protobuf.go), or an Avro schema with attributes for what Avro lacks (internal/protoavro).
//
// Decoder.Event is the one definition of an event for all readers of the log. For topics of other
// systems, external.go returns complete schemas with their references.
//
// The registry is queried when a producer starts and when a consumer meets a new schema, and the
// results are cached. So an outage does not affect running producers and consumers; see
// Client.Degraded.
package registry

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/millrace/millrace/event"
)

// Codec is the format of a topic's values.
type Codec string

// The codecs.
const (
	Plain    Codec = "plain"    // only the Protobuf message; needs no registry
	Protobuf Codec = "protobuf" // the same after Confluent's frame
	Avro     Codec = "avro"     // Avro after Confluent's frame
)

// ParseCodec parses the name of a codec.
func ParseCodec(name string) (Codec, error) {
	switch c := Codec(name); c {
	case Plain, Protobuf, Avro:
		return c, nil
	}
	return "", fmt.Errorf("codec %q is not %s, %s or %s", name, Plain, Protobuf, Avro)
}

var (
	// ErrUnavailable is wrapped by temporary errors: the registry cannot be reached, does not
	// answer in time, or refuses access. The caller should retry later. All other errors of Encode
	// and Decode are permanent.
	ErrUnavailable = errors.New("schema registry unavailable")

	// ErrIncompatible reports that the registry refused a schema that is incompatible with earlier
	// ones of its subject.
	ErrIncompatible = errors.New("schema is incompatible with the subject's earlier ones")
)

// Message returns the descriptor of an aggregate's event message, which must be linked into the
// program.
func Message(of event.Aggregate) (protoreflect.MessageDescriptor, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(of.Message))
	if err != nil {
		return nil, fmt.Errorf("events of %s: %s is not linked into the program: %w", of.Name, of.Message, err)
	}
	m, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, fmt.Errorf("events of %s: %s is not a message", of.Name, of.Message)
	}
	return m, nil
}

// subject returns the subject of a topic's values.
func subject(topic string) string { return topic + "-value" }
