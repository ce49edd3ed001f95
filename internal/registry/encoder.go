package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/protoavro"
)

// EncoderConfig has the settings of an Encoder.
type EncoderConfig struct {
	Client  *Client
	Topic   string
	Message protoreflect.MessageDescriptor // of the topic's values; see Message
	Codec   Codec                          // Protobuf or Avro

	// Compatibility is the level to set for the subject, in the registry's terms:
	// BACKWARD_TRANSITIVE, FULL, NONE, … Empty leaves the subject's level unchanged.
	Compatibility string
}

// Encoder encodes the values of one topic. A nil Encoder writes plain values. It is safe for
// concurrent use.
type Encoder struct {
	client   *Client
	subject  string
	level    sr.CompatibilityLevel // of the subject
	setLevel bool                  // level must be set

	file protoreflect.FileDescriptor // for Protobuf
	path []int                       // for Protobuf: indices of the message within the file
	text string                      // for Avro: the schema
	plan *protoavro.Plan             // for Avro

	startMu sync.Mutex             // held while the schema is registered
	frame   atomic.Pointer[[]byte] // prefix of every value; nil until the schema's id is known
}

// Content types in the headers of events. The frame does not change them, since readers that use a
// registry handle it themselves.
const (
	contentProtobuf = event.ContentType
	contentAvro     = "application/avro"
)

// NewEncoder derives the schema, without contacting the registry. For Plain it returns a nil
// Encoder.
func NewEncoder(cfg EncoderConfig) (*Encoder, error) {
	if cfg.Codec == Plain {
		return nil, nil
	}
	switch {
	case cfg.Topic == "" || cfg.Message == nil:
		return nil, errors.New("registry: an encoder requires a topic and a message")
	case cfg.Client == nil:
		return nil, fmt.Errorf("registry: topic %s: codec %s requires a schema registry: set registry.url", cfg.Topic,
			cfg.Codec)
	}
	e := &Encoder{client: cfg.Client, subject: subject(cfg.Topic), setLevel: cfg.Compatibility != ""}
	if e.setLevel {
		if err := e.level.UnmarshalText([]byte(cfg.Compatibility)); err != nil {
			return nil, fmt.Errorf("registry: compatibility %q: %w", cfg.Compatibility, err)
		}
	}
	switch cfg.Codec {
	case Protobuf:
		e.file, e.path = cfg.Message.ParentFile(), pathTo(cfg.Message)
	case Avro:
		text, err := protoavro.Schema(cfg.Message)
		if err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		e.text = text
		if e.plan, err = protoavro.Compile(text); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	default:
		return nil, fmt.Errorf("registry: topic %s: unknown codec %q", cfg.Topic, cfg.Codec)
	}
	return e, nil
}

// Start sets the subject's compatibility and registers the schema if necessary. The error wraps
// ErrIncompatible if the registry refuses the schema, and ErrUnavailable if the caller should
// retry. After it has succeeded, further calls are free and the registry is not needed any more.
func (e *Encoder) Start(ctx context.Context) error {
	if e == nil || e.frame.Load() != nil {
		return nil
	}
	// Several partitions may start at once: only one of them registers the schema.
	e.startMu.Lock()
	defer e.startMu.Unlock()
	if e.frame.Load() != nil {
		return nil
	}
	if e.setLevel {
		if err := e.client.ensureCompatibility(ctx, e.subject, e.level); err != nil {
			return err
		}
	}
	schema := sr.Schema{Schema: e.text, Type: sr.TypeAvro}
	if e.file != nil {
		var err error
		if schema, err = e.client.protoSchema(ctx, e.file, map[string]sr.SchemaReference{}); err != nil {
			return err
		}
	}
	registered, err := e.client.ensureSchema(ctx, e.subject, schema)
	if err != nil {
		return err
	}
	// The frame is the same for all values of the topic.
	frame := appendFrame(nil, registered.ID)
	if e.file != nil {
		frame = appendPath(frame, e.path)
	}
	e.frame.Store(&frame)
	return nil
}

// protoSchema returns the schema of a file. Imported files are registered first, each under its own
// path, as Confluent's serializers do. So topics share them.
func (c *Client) protoSchema(ctx context.Context, f protoreflect.FileDescriptor,
	done map[string]sr.SchemaReference) (sr.Schema, error) {
	text, err := protoText(f)
	if err != nil {
		return sr.Schema{}, err
	}
	s := sr.Schema{Schema: text, Type: sr.TypeProtobuf}
	for _, needed := range imports(f) {
		path := needed.Path()
		reference, ok := done[path]
		if !ok {
			schema, err := c.protoSchema(ctx, needed, done)
			if err != nil {
				return sr.Schema{}, err
			}
			registered, err := c.ensureSchema(ctx, path, schema)
			if err != nil {
				return sr.Schema{}, err
			}
			reference = sr.SchemaReference{Name: path, Subject: path, Version: registered.Version}
			done[path] = reference
		}
		s.References = append(s.References, reference)
	}
	return s, nil
}

// Encode converts an event's message to the value of a record, and returns the content type for its
// header. It calls Start if necessary. The error wraps ErrUnavailable if the caller should retry,
// which only happens before Start has succeeded. Any other error is permanent: it means that the
// message cannot be encoded without loss.
func (e *Encoder) Encode(ctx context.Context, message []byte) (value []byte, contentType string, err error) {
	if e == nil {
		return message, contentProtobuf, nil
	}
	frame := e.frame.Load()
	if frame == nil {
		if err := e.Start(ctx); err != nil {
			return nil, "", err
		}
		frame = e.frame.Load()
	}
	// Avro is usually a little longer than the message.
	value = append(make([]byte, 0, len(*frame)+len(message)+len(message)/4), *frame...)
	if e.plan == nil {
		return append(value, message...), contentProtobuf, nil
	}
	if value, err = e.plan.Encode(value, message); err != nil {
		return nil, "", fmt.Errorf("encode as Avro for subject %s: %w", e.subject, err)
	}
	return value, contentAvro, nil
}
