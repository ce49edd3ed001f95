// Package registry writes and reads the values on the bus in the ways that the world around Kafka reads them: Protobuf alone,
// or Protobuf or Avro with the framing of Confluent's schema registry, whose subjects are named after topics ("<topic>-value").
//
// Inside Millrace an event's data is always its Protobuf message. An Encoder turns it into what stands on a topic, at the last
// moment before it is produced; a Decoder turns that back, at the first moment after it was read, into the same bytes: digests of
// store, topic and tables stay comparable, whatever the codec. A reader needs no setting but the registry's address, for every value
// says how it was written; so a topic may change its codec at any time.
//
// Schemas come from the Protobuf descriptors: a file as text with its imports as references (protobuf.go), or an Avro schema that
// carries what Avro lacks as attributes (internal/protoavro).
//
// The registry is asked when a producer starts and when a consumer meets a schema for the first time, and what it said is kept. So
// an outage stops nobody who is under way; see Client.Degraded.
package registry

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/millrace/millrace/event"
)

// Codec is how the values of a topic are written.
type Codec string

// The codecs.
const (
	Plain    Codec = "plain"    // the Protobuf message alone; needs no registry
	Protobuf Codec = "protobuf" // the same behind Confluent's frame
	Avro     Codec = "avro"     // Avro behind Confluent's frame
)

// ParseCodec reads a codec's name.
func ParseCodec(name string) (Codec, error) {
	switch c := Codec(name); c {
	case Plain, Protobuf, Avro:
		return c, nil
	}
	return "", fmt.Errorf("codec %q: want %s, %s or %s", name, Plain, Protobuf, Avro)
}

var (
	// ErrUnavailable is what errors wrap that can pass by themselves: the registry is out of reach, does not answer in time, or
	// lets us not in. Whoever meets it tries again later. Any other error of Encode or Decode stays.
	ErrUnavailable = errors.New("schema registry unavailable")

	// ErrIncompatible says that the registry refused a schema because readers of the subject's older data could not use it.
	ErrIncompatible = errors.New("schema is incompatible with the subject's earlier ones")
)

// Message finds the descriptor of an aggregate's events message among those that are linked into the program.
func Message(of event.Aggregate) (protoreflect.MessageDescriptor, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(of.Message))
	if err != nil {
		return nil, fmt.Errorf("events of %s: %s is not linked in: %w", of.Name, of.Message, err)
	}
	m, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, fmt.Errorf("events of %s: %s is no message", of.Name, of.Message)
	}
	return m, nil
}

// subject is where the schema of a topic's values is registered.
func subject(topic string) string { return topic + "-value" }
