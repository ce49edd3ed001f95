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

// EncoderConfig says what an Encoder writes.
type EncoderConfig struct {
	Client  *Client
	Topic   string
	Message protoreflect.MessageDescriptor // of the topic's values; see Message
	Codec   Codec                          // Protobuf or Avro

	// Compatibility is what the subject is made to ask of new schemas, in the registry's words: BACKWARD_TRANSITIVE, FULL, NONE, …
	// Empty leaves the subject as it is.
	Compatibility string
}

// Encoder writes the values of one topic. The nil Encoder writes plain ones. It is safe for concurrent use.
type Encoder struct {
	client  *Client
	subject string
	level   sr.CompatibilityLevel
	setting bool // whether to set the level

	file protoreflect.FileDescriptor // of Protobuf
	path []int                       // likewise: to the message
	text string                      // of Avro: the schema
	plan *protoavro.Plan             // likewise

	starting sync.Mutex
	frame    atomic.Pointer[[]byte] // what every value begins with; nil until the schema's id is known
}

// The content types that the header of an event says. The frame does not change them: to readers who use a registry it is a part
// of how they read.
const (
	contentProtobuf = event.ContentType
	contentAvro     = "application/avro"
)

// NewEncoder derives the schema; it asks the registry for nothing. For Plain it gives the nil Encoder.
func NewEncoder(cfg EncoderConfig) (*Encoder, error) {
	if cfg.Codec == Plain {
		return nil, nil
	}
	switch {
	case cfg.Topic == "" || cfg.Message == nil:
		return nil, errors.New("registry: an encoder needs a topic and a message")
	case cfg.Client == nil:
		return nil, fmt.Errorf("registry: topic %s: codec %s needs a schema registry: set registry.url", cfg.Topic, cfg.Codec)
	}
	e := &Encoder{client: cfg.Client, subject: subject(cfg.Topic), setting: cfg.Compatibility != ""}
	if e.setting {
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

// Start sees to it that the subject asks for the compatibility and has the schema. Its error wraps ErrIncompatible where the
// registry refuses the schema, and ErrUnavailable where to try again makes sense. Once it has succeeded it costs nothing, and the
// registry is needed no more.
func (e *Encoder) Start(ctx context.Context) error {
	if e == nil || e.frame.Load() != nil {
		return nil
	}
	e.starting.Lock()
	defer e.starting.Unlock()
	if e.frame.Load() != nil {
		return nil
	}
	if e.setting {
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
	frame := appendFrame(nil, registered.ID)
	if e.file != nil {
		frame = appendPath(frame, e.path)
	}
	e.frame.Store(&frame)
	return nil
}

// protoSchema is a file's schema. What the file imports is registered first, each file under its own path, as Confluent's
// serializers do, so that several topics share it.
func (c *Client) protoSchema(ctx context.Context, f protoreflect.FileDescriptor, done map[string]sr.SchemaReference) (sr.Schema, error) {
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

// Encode turns an event's message into the value of a record, and says what to put into its header content-type. It starts the
// Encoder where nobody has. Its error wraps ErrUnavailable where to try again makes sense, which cannot be once it has started; any
// other error means that the message cannot be written so that it reads back byte for byte.
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
	value = append(make([]byte, 0, len(*frame)+len(message)+len(message)/4), *frame...)
	if e.plan == nil {
		return append(value, message...), contentProtobuf, nil
	}
	if value, err = e.plan.Encode(value, message); err != nil {
		return nil, "", fmt.Errorf("write as Avro for subject %s: %w", e.subject, err)
	}
	return value, contentAvro, nil
}
