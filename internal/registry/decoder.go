package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/protoavro"
)

// Decoder reads values of any topic and any codec. The nil Decoder, and one without a Client, knows plain values only.
// It is safe for concurrent use.
type Decoder struct {
	client   *Client
	seals    Seals             // may be nil
	messages map[string]string // expected full name by topic, where known

	mu      sync.RWMutex
	schemas map[int]*writerSchema
}

// writerSchema is a registered schema as far as reading needs it.
type writerSchema struct {
	plan  *protoavro.Plan                   // of Avro
	file  *descriptorpb.FileDescriptorProto // of Protobuf
	first string                            // likewise: the first message's name, which nearly all values are of
	bad   error                             // why its values cannot be read; it stays so
}

// NewDecoder makes a Decoder. It fetches a schema when it first meets its id, and keeps it. client may be nil.
func NewDecoder(client *Client) *Decoder {
	d := &Decoder{client: client, messages: map[string]string{}, schemas: map[int]*writerSchema{}}
	for _, a := range event.Aggregates() {
		d.messages[a.Topic] = a.Message
	}
	return d
}

// Record is a Kafka record as it was read.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []event.Header
}

// Seals checks that records were published by the relay of their topic.
type Seals interface {
	// CheckSeal returns an error if the relay did not publish the record. It wraps event.ErrNotEvent, or ErrUnavailable
	// if the caller should retry. sealed reports that the record has a valid seal. Relays seal only what passes
	// event.CheckOn.
	CheckSeal(ctx context.Context, r Record, e event.Event) (sealed bool, err error)
}

// CheckSeals makes Event reject records that the relay of their topic did not publish. Call it before the first use.
func (d *Decoder) CheckSeals(s Seals) { d.seals = s }

// Decode gives back the message that the value of a record on the topic was made of, byte for byte. A plain value is
// returned as it is. Its error wraps ErrUnavailable where to try again makes sense; any other error means that the
// value cannot be read, now or later.
func (d *Decoder) Decode(ctx context.Context, topic string, value []byte) ([]byte, error) {
	if !IsFramed(value) {
		return value, nil
	}
	message, err := d.decode(ctx, topic, value)
	if err != nil {
		return nil, fmt.Errorf("value on %s: %w", topic, err)
	}
	return message, nil
}

// Event reads an event from a record. It is the one definition of an event for every reader of the log:
// event.FromRecord, Decode, event.CheckOn and the relay's seal. Its errors wrap event.ErrNotEvent, or ErrUnavailable if
// the caller should retry.
func (d *Decoder) Event(ctx context.Context, r Record) (event.Event, error) {
	e, _, err := d.Sealed(ctx, r)
	return e, err
}

// Sealed is Event. It also reports whether the record has a valid seal. Readers that would count a copy of an event twice
// pass the sealed ones through an event.Sequence per partition.
func (d *Decoder) Sealed(ctx context.Context, r Record) (e event.Event, sealed bool, err error) {
	e, err = event.FromRecord(r.Key, r.Value, r.Headers)
	if err != nil {
		return event.Event{}, false, err
	}
	return d.Complete(ctx, r, e)
}

// Complete is Sealed for a record whose envelope event.FromRecord has read. A caller that needs the
// envelope before it may wait for a schema reads it only once.
func (d *Decoder) Complete(ctx context.Context, r Record, envelope event.Event) (e event.Event, sealed bool, err error) {
	e = envelope
	if IsFramed(r.Value) {
		if e.Data, err = d.Decode(ctx, r.Topic, r.Value); err != nil {
			if errors.Is(err, ErrUnavailable) {
				return event.Event{}, false, err
			}
			return event.Event{}, false, fmt.Errorf("%w: %w", event.ErrNotEvent, err)
		}
	}
	if d != nil && d.seals != nil {
		sealed, err := d.seals.CheckSeal(ctx, r, e)
		if err != nil {
			return event.Event{}, false, err
		}
		if sealed { // so the relay has checked it: once for all readers
			return e, true, nil
		}
	}
	if err := event.CheckOn(r.Topic, e); err != nil {
		return event.Event{}, false, err
	}
	return e, false, nil
}

func (d *Decoder) decode(ctx context.Context, topic string, value []byte) ([]byte, error) {
	id, rest, err := cutFrame(value)
	if err != nil {
		return nil, err
	}
	if d == nil || d.client == nil {
		return nil, fmt.Errorf("it is written with schema %d of a schema registry, and none is configured: set registry.url", id)
	}
	s, err := d.schema(ctx, id)
	if err == nil {
		err = s.bad
	}
	if err != nil {
		return nil, err
	}
	var of string
	var message []byte
	if s.plan != nil {
		of = s.plan.Message()
		message, err = s.plan.Decode(make([]byte, 0, len(rest)+len(rest)/2), rest)
	} else {
		var path []int
		if path, message, err = cutPath(rest); err == nil {
			if of = s.first; path != nil {
				of, err = messageAt(s.file, path)
			}
		}
	}
	if want := d.messages[topic]; err == nil && want != "" && of != want {
		err = fmt.Errorf("it is of %s, want %s", of, want)
	}
	if err != nil {
		return nil, fmt.Errorf("schema %d: %w", id, err)
	}
	return message, nil
}

// schema is the registered schema with an id.
func (d *Decoder) schema(ctx context.Context, id int) (*writerSchema, error) {
	d.mu.RLock()
	s := d.schemas[id]
	d.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	registered, err := d.client.schema(ctx, id)
	if err != nil { // an id that nobody has given yet may be given later
		return nil, err
	}
	s = readSchema(registered)
	if s.bad != nil {
		s.bad = fmt.Errorf("schema %d: %w", id, s.bad)
	}
	d.mu.Lock()
	d.schemas[id] = s
	d.mu.Unlock()
	return s, nil
}

func readSchema(registered sr.Schema) *writerSchema {
	s := &writerSchema{}
	switch registered.Type {
	case sr.TypeAvro:
		s.plan, s.bad = protoavro.Compile(registered.Schema)
	case sr.TypeProtobuf:
		if s.file, s.bad = parseProto(registered.Schema); s.bad == nil {
			s.first, s.bad = messageAt(s.file, []int{0})
		}
	default:
		s.bad = fmt.Errorf("type %s is not one that Millrace reads", registered.Type)
	}
	return s
}
