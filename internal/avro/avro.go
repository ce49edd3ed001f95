// Package avro reads and writes the primitives of Avro's binary encoding, without a schema and
// without an intermediate value.
//
// internal/protoavro turns Avro into Protobuf's wire format with it, and lake/avro turns Avro into
// columns. Schemas are the matter of the Avro library, which both of them parse schemas with.
package avro

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Errors of a Reader.
var (
	ErrShort   = errors.New("it ends too early")
	ErrNotText = errors.New("a string that is not UTF-8")
)

// Reader reads from Rest. After the first error, which is Err, it returns zeros.
type Reader struct {
	Rest []byte
	Err  error
}

// Fail sets Err unless it is set already, and ends the input.
func (r *Reader) Fail(err error) {
	if r.Err == nil {
		r.Err = err
	}
	r.Rest = nil
}

// Long reads a long.
func (r *Reader) Long() int64 {
	v, n := protowire.ConsumeVarint(r.Rest)
	if n < 0 {
		r.Fail(ErrShort)
		return 0
	}
	r.Rest = r.Rest[n:]
	return protowire.DecodeZigZag(v)
}

// Int reads an int.
func (r *Reader) Int() int32 {
	v := r.Long()
	if int64(int32(v)) != v {
		r.Fail(fmt.Errorf("%d is beyond 32 bits", v))
	}
	return int32(v)
}

// Bool reads a boolean.
func (r *Reader) Bool() bool {
	b := r.Take(1)
	if len(b) == 0 {
		return false
	}
	if b[0] > 1 {
		r.Fail(fmt.Errorf("%d is no boolean", b[0]))
	}
	return b[0] == 1
}

// Take reads n bytes, which belong to the input.
func (r *Reader) Take(n int64) []byte {
	if n < 0 || n > int64(len(r.Rest)) {
		r.Fail(ErrShort)
		return nil
	}
	taken := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return taken
}

// Bytes reads bytes with their length.
func (r *Reader) Bytes() []byte { return r.Take(r.Long()) }

// Text reads a string, as bytes.
func (r *Reader) Text() []byte {
	b := r.Bytes()
	if !utf8.Valid(b) {
		r.Fail(ErrNotText)
	}
	return b
}

// Present reads which part of a union of null and another type follows, and reports whether it is
// not null, whose part is nullAt.
func (r *Reader) Present(nullAt int64) bool {
	switch part := r.Long(); {
	case r.Err != nil, part == nullAt:
		return false
	case part == 1-nullAt:
		return true
	default:
		r.Fail(fmt.Errorf("part %d of a union of two", part))
		return false
	}
}

// Block reads how many items of an array or a map follow. Zero is the end.
func (r *Reader) Block() int64 {
	n := r.Long()
	if n < 0 { // then its length in bytes follows, for readers that skip it
		r.Long()
		n = -n
	}
	if n < 0 { // -2^63
		r.Fail(ErrShort)
		return 0
	}
	return n
}

// AppendLong appends a long or an int.
func AppendLong(dst []byte, v int64) []byte {
	return protowire.AppendVarint(dst, protowire.EncodeZigZag(v))
}

// AppendBytes appends bytes or a string.
func AppendBytes(dst, b []byte) []byte { return append(AppendLong(dst, int64(len(b))), b...) }
