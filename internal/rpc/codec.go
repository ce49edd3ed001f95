package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Codecs returns connect's codecs with other errors for requests that cannot be decoded: they name
// the field, as in the contract, and no Go type. With strict, fields and enum values that the
// contract does not have are errors. Otherwise they are ignored.
func Codecs(strict bool) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCodec(binaryCodec{}),
		connect.WithCodec(jsonCodec{name: "json", strict: strict}),
		connect.WithCodec(jsonCodec{name: "json; charset=utf-8", strict: strict}),
	}
}

// binaryCodec is the codec of Protobuf's binary format. It replaces connect's own, whose errors
// name Go types.
type binaryCodec struct{}

func (binaryCodec) Name() string { return "proto" }

func (binaryCodec) IsBinary() bool { return true }

func (c binaryCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (binaryCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, err := protoMessage(message)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

func (binaryCodec) MarshalStable(message any) ([]byte, error) {
	m, err := protoMessage(message)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func (binaryCodec) Unmarshal(data []byte, message any) error {
	m, err := protoMessage(message)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return fmt.Errorf("not a %s in Protobuf's wire format: %s", m.ProtoReflect().Descriptor().FullName(),
			reason(err))
	}
	return nil
}

// jsonCodec is the codec of Protobuf's JSON format. Connect looks codecs up by name, and a content
// type with a charset is another name.
type jsonCodec struct {
	name   string
	strict bool
}

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) IsBinary() bool { return false }

func (c jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, err := protoMessage(message)
	if err != nil {
		return nil, err
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// MarshalStable removes the spaces that protojson inserts at random.
func (c jsonCodec) MarshalStable(message any) ([]byte, error) {
	b, err := c.Marshal(message)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

func (c jsonCodec) Unmarshal(data []byte, message any) error {
	m, err := protoMessage(message)
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: !c.strict}).Unmarshal(data, m); err != nil {
		return explainJSON(data, m.ProtoReflect().Descriptor(), c.strict, err)
	}
	return nil
}

// protoMessage returns the message, which connect passes as any.
func protoMessage(message any) (proto.Message, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, errors.New("not a Protobuf message")
	}
	return m, nil
}

// reason returns the message of an error of Protobuf's libraries without their prefix. The prefix
// sometimes ends with a no-break space.
func reason(err error) string {
	text := strings.TrimPrefix(err.Error(), "proto:")
	return strings.TrimLeft(text, " \u00a0")
}
