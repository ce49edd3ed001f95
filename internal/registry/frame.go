package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/internal/avro"
)

// Confluent's frame: a zero byte, the schema's id in four bytes, and for Protobuf the index path of
// the message in its file, as signed varints: the number of indices, then each index. The path of
// the first message, [0], is a single zero byte.
const (
	magicByte     = 0
	frameSize     = 5
	maxPathLength = 64 // maximum length of an index path
)

// IsFramed reports whether a value has the frame of a schema registry. No header or setting is
// needed: a Protobuf message cannot begin with a zero byte, because field number 0 is not allowed.
func IsFramed(value []byte) bool { return len(value) > 0 && value[0] == magicByte }

// appendFrame appends the zero byte and the schema's id.
func appendFrame(dst []byte, id int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, magicByte), uint32(id))
}

var errFrame = errors.New("incomplete frame: the value ends within the schema id")

// cutFrame splits a framed value into the schema's id and the rest.
func cutFrame(value []byte) (id int, rest []byte, err error) {
	if len(value) < frameSize {
		return 0, nil, errFrame
	}
	return int(binary.BigEndian.Uint32(value[1:])), value[frameSize:], nil
}

// CutProtobufFrame removes the frame from a Protobuf value. It ignores which message of the file
// the frame names.
func CutProtobufFrame(value []byte) ([]byte, error) {
	_, rest, err := cutFrame(value)
	if err != nil {
		return nil, err
	}
	_, message, err := cutPath(rest)
	return message, err
}

// pathTo returns the index path of a message in its file.
func pathTo(m protoreflect.MessageDescriptor) []int {
	// Walk up to the file, and collect the index of the message within each parent.
	var path []int
	for d := protoreflect.Descriptor(m); ; d = d.Parent() {
		if _, isFile := d.(protoreflect.FileDescriptor); isFile {
			slices.Reverse(path)
			return path
		}
		path = append(path, d.Index())
	}
}

// appendPath appends an index path.
func appendPath(dst []byte, path []int) []byte {
	if len(path) == 1 && path[0] == 0 {
		return append(dst, 0)
	}
	dst = avro.AppendLong(dst, int64(len(path)))
	for _, i := range path {
		dst = avro.AppendLong(dst, int64(i))
	}
	return dst
}

// cutPath reads an index path. The most common path, [0], is returned as nil.
func cutPath(value []byte) (path []int, rest []byte, err error) {
	// The path uses Avro's zigzag varints.
	s := avro.Reader{Rest: value}
	steps := s.Long()
	// A length of 0 abbreviates [0].
	if steps == 0 {
		return nil, s.Rest, s.Err
	}
	if steps < 0 || steps > maxPathLength {
		return nil, nil, fmt.Errorf("message index path of length %d", steps)
	}
	for range steps {
		i := s.Long()
		if i < 0 || i > int64(protowire.MaxValidNumber) {
			s.Fail(fmt.Errorf("index %d in the message index path", i))
		}
		path = append(path, int(i))
	}
	return path, s.Rest, s.Err
}
