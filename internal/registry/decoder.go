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

// Decoder decodes values of any topic and codec. A nil Decoder, or one without a Client, only
// decodes plain values. It is safe for concurrent use.
type Decoder struct {
	client   *Client
	seals    Seals             // may be nil
	messages map[string]string // expected full name by topic, for topics of aggregates

	mu      sync.RWMutex // protects schemas
	schemas map[int]*writerSchema
}

// writerSchema is a registered schema, prepared for decoding.
type writerSchema struct {
	plan *protoavro.Plan                   // for Avro
	file *descriptorpb.FileDescriptorProto // for Protobuf
	// For Protobuf: name of the file's first message, the type of nearly all values.
	first string
	err   error // permanent reason why its values cannot be decoded
}

// NewDecoder returns a Decoder. It fetches each schema once, when it first meets its id. client may
// be nil.
func NewDecoder(client *Client) *Decoder {
	d := &Decoder{client: client, messages: map[string]string{}, schemas: map[int]*writerSchema{}}
	for _, a := range event.Aggregates() {
		d.messages[a.Topic] = a.Message
	}
	return d
}

// Record is a consumed Kafka record.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []event.Header
}

// Seals verifies that records were published by the relay of their topic.
type Seals interface {
	// CheckSeal returns an error if the relay did not publish the record. The error wraps
	// event.ErrNotEvent, or ErrUnavailable if the caller should retry. sealed reports whether the
	// record has a valid seal. Relays only seal events that pass event.CheckOn.
	CheckSeal(ctx context.Context, r Record, e event.Event) (sealed bool, err error)
}

// CheckSeals makes Event reject records that the relay of their topic did not publish. It must be
// called before the first use.
func (d *Decoder) CheckSeals(s Seals) { d.seals = s }

// Decode returns the message from which the value of a record was made, byte for byte. A plain
// value is returned unchanged. The error wraps ErrUnavailable if the caller should retry; any other
// error is permanent.
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

// Event decodes an event from a record. It defines what an event is for every reader of the log:
// event.FromRecord, Decode, event.CheckOn and the relay's seal must all succeed. Errors wrap
// event.ErrNotEvent, or ErrUnavailable if the caller should retry.
func (d *Decoder) Event(ctx context.Context, r Record) (event.Event, error) {
	e, _, err := d.Sealed(ctx, r)
	return e, err
}

// Sealed is Event. It also reports whether the record has a valid seal. Readers for which a copy of
// an event would be a duplicate must pass sealed events through an event.Sequence per partition.
func (d *Decoder) Sealed(ctx context.Context, r Record) (e event.Event, sealed bool, err error) {
	e, err = event.FromRecord(r.Key, r.Value, r.Headers)
	if err != nil {
		return event.Event{}, false, err
	}
	return d.Complete(ctx, r, e)
}

// Complete is Sealed for a record whose envelope has already been read with event.FromRecord.
// Callers that need the envelope before a schema may have to be fetched read it only once that way.
func (d *Decoder) Complete(ctx context.Context, r Record, envelope event.Event) (e event.Event, sealed bool,
	err error) {
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
		if sealed { // the relay checked it before sealing it
			return e, true, nil
		}
	}
	if err := event.CheckOn(r.Topic, e); err != nil {
		return event.Event{}, false, err
	}
	return e, false, nil
}

// decode decodes a framed value and checks that it is the topic's message.
func (d *Decoder) decode(ctx context.Context, topic string, value []byte) ([]byte, error) {
	id, rest, err := cutFrame(value)
	if err != nil {
		return nil, err
	}
	if d == nil || d.client == nil {
		return nil, fmt.Errorf("encoded with schema %d of a schema registry, but none is configured: "+
			"set registry.url", id)
	}
	s, err := d.schema(ctx, id)
	if err == nil {
		err = s.err
	}
	if err != nil {
		return nil, err
	}
	var of string // full name of the value's message
	var message []byte
	if s.plan != nil {
		of = s.plan.Message()
		message, err = s.plan.Decode(make([]byte, 0, len(rest)+len(rest)/2), rest)
	} else {
		var path []int
		// Protobuf needs no conversion. Only the name of the message is checked.
		if path, message, err = cutPath(rest); err == nil {
			if of = s.first; path != nil {
				of, err = messageAt(s.file, path)
			}
		}
	}
	// A topic of an aggregate has only that aggregate's messages.
	if want := d.messages[topic]; err == nil && want != "" && of != want {
		err = fmt.Errorf("the message is %s, want %s", of, want)
	}
	if err != nil {
		return nil, fmt.Errorf("schema %d: %w", id, err)
	}
	return message, nil
}

// schema returns the schema with an id, from memory or the registry.
func (d *Decoder) schema(ctx context.Context, id int) (*writerSchema, error) {
	d.mu.RLock()
	s := d.schemas[id]
	d.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	registered, err := d.client.schema(ctx, id)
	if err != nil { // not cached: the id may be registered later
		return nil, err
	}
	s = readSchema(registered)
	if s.err != nil {
		s.err = fmt.Errorf("schema %d: %w", id, s.err)
	}
	d.mu.Lock()
	d.schemas[id] = s
	d.mu.Unlock()
	return s, nil
}

// readSchema prepares a schema. Failures are stored in err, so they are cached as well.
func readSchema(registered sr.Schema) *writerSchema {
	s := &writerSchema{}
	switch registered.Type {
	case sr.TypeAvro:
		s.plan, s.err = protoavro.Compile(registered.Schema)
	case sr.TypeProtobuf:
		if s.file, s.err = parseProto(registered.Schema); s.err == nil {
			s.first, s.err = messageAt(s.file, []int{0})
		}
	default:
		s.err = fmt.Errorf("unsupported schema type %s", registered.Type)
	}
	return s
}
