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

// Confluent's frame: a byte 0, the schema's id in four bytes, and for Protobuf the path to the message within its file, as
// signed varints: how many steps, then each. The path to the first message of a file, [0], is one byte 0.
const (
	magic     = 0
	frameSize = 5
	maxSteps  = 64 // from a file to its message
)

// IsFramed tells whether a value was written with a schema registry. It needs no header and no setting for that: no Protobuf message begins
// with 0, which would be a field of number 0, and that is not allowed.
func IsFramed(value []byte) bool { return len(value) > 0 && value[0] == magic }

func appendFrame(dst []byte, id int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, magic), uint32(id))
}

var errFrame = errors.New("it begins like a value with a schema id, and ends before that is complete")

func cutFrame(value []byte) (id int, rest []byte, err error) {
	if len(value) < frameSize {
		return 0, nil, errFrame
	}
	return int(binary.BigEndian.Uint32(value[1:])), value[frameSize:], nil
}

// CutProtobufFrame takes the frame off a value that was written as Protobuf. Which message of its file it says it is, is not
// looked at.
func CutProtobufFrame(value []byte) ([]byte, error) {
	_, rest, err := cutFrame(value)
	if err != nil {
		return nil, err
	}
	_, message, err := cutPath(rest)
	return message, err
}

// pathTo is the message's path within its file.
func pathTo(m protoreflect.MessageDescriptor) []int {
	var path []int
	for d := protoreflect.Descriptor(m); ; d = d.Parent() {
		if _, isFile := d.(protoreflect.FileDescriptor); isFile {
			slices.Reverse(path)
			return path
		}
		path = append(path, d.Index())
	}
}

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

// cutPath reads a path; first, the one that nearly every value has, is nil.
func cutPath(value []byte) (path []int, rest []byte, err error) {
	s := avro.Reader{Rest: value}
	steps := s.Long()
	if steps == 0 {
		return nil, s.Rest, s.Err
	}
	if steps < 0 || steps > maxSteps {
		return nil, nil, fmt.Errorf("a path of %d steps to its message", steps)
	}
	for range steps {
		i := s.Long()
		if i < 0 || i > int64(protowire.MaxValidNumber) {
			s.Fail(fmt.Errorf("step %d in the path to its message", i))
		}
		path = append(path, int(i))
	}
	return path, s.Rest, s.Err
}
