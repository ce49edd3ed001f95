// Package avro reads and writes the primitives of Avro's binary encoding, without a schema and
// without intermediate values.
//
// internal/protoavro uses it to convert between Avro and Protobuf's wire format, and lake/avro to
// decode Avro into columns. Both parse schemas with the Avro library.
//
// A Reader keeps its first error, so callers can check for errors once after several reads. Input
// need not be trusted: a Reader never reads beyond it and allocates nothing for its contents.
package avro

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Errors of a Reader.
var (
	ErrShort   = errors.New("unexpected end of the value")
	ErrNotText = errors.New("string is not UTF-8")
)

// Reader reads from Rest. After the first error, which is in Err, all methods return zeros.
type Reader struct {
	Rest []byte
	Err  error
}

// Fail sets Err, unless it is already set, and discards the rest of the input.
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
		r.Fail(fmt.Errorf("%d does not fit 32 bits", v))
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
		r.Fail(fmt.Errorf("%d is not a boolean", b[0]))
	}
	return b[0] == 1
}

// Take reads n bytes. The result aliases the input.
func (r *Reader) Take(n int64) []byte {
	if n < 0 || n > int64(len(r.Rest)) {
		r.Fail(ErrShort)
		return nil
	}
	taken := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return taken
}

// Bytes reads a length and that many bytes.
func (r *Reader) Bytes() []byte { return r.Take(r.Long()) }

// Text reads a string and checks that it is UTF-8.
func (r *Reader) Text() []byte {
	b := r.Bytes()
	if !utf8.Valid(b) {
		r.Fail(ErrNotText)
	}
	return b
}

// Present reads the branch index of a union of null and another type, and reports whether the other
// type follows. nullAt is the index of null.
func (r *Reader) Present(nullAt int64) bool {
	switch branch := r.Long(); {
	case r.Err != nil, branch == nullAt:
		return false
	case branch == 1-nullAt:
		return true
	default:
		r.Fail(fmt.Errorf("branch %d of a union of two types", branch))
		return false
	}
}

// Block reads the number of items in the next block of an array or a map. Zero ends it.
func (r *Reader) Block() int64 {
	n := r.Long()
	if n < 0 { // followed by the block's size in bytes, for readers that skip it
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
