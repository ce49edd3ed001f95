package pages

import (
	"encoding/binary"

	"github.com/apache/arrow-go/v18/parquet"
)

// A page header is a struct in Thrift's compact protocol. Each field begins with a byte that has
// the distance from the previous field's number and the type. Numbers are zigzag varints. A zero
// byte ends a struct.
const (
	thriftNumber = 0x05
	thriftStruct = 0x0c
	thriftNext   = 0x10 // increments the field number
)

// Types of pages in Parquet's format.
const (
	dataPage       = 0
	dictionaryPage = 2
)

// appendNumber appends the next field of a struct, a number.
func appendNumber(b []byte, v int) []byte {
	return binary.AppendVarint(append(b, thriftNext|thriftNumber), int64(v))
}

// appendDataHeader appends the header of a data page of version 1.
func appendDataHeader(b []byte, values int, encoding parquet.Encoding, size, compressed int) []byte {
	b = appendNumber(appendNumber(appendNumber(b, dataPage), size), compressed)
	b = append(b, 2*thriftNext|thriftStruct) // field 5; field 4, the checksum, is omitted
	b = appendNumber(appendNumber(b, values), int(encoding))
	b = appendNumber(b, int(parquet.Encodings.RLE)) // of definition levels
	b = appendNumber(b, int(parquet.Encodings.RLE)) // of repetition levels
	return append(b, 0, 0)
}

// appendDictionaryHeader appends the header of a dictionary page.
func appendDictionaryHeader(b []byte, values, size, compressed int) []byte {
	b = appendNumber(appendNumber(appendNumber(b, dictionaryPage), size), compressed)
	b = append(b, 4*thriftNext|thriftStruct) // field 7
	b = appendNumber(appendNumber(b, values), int(parquet.Encodings.Plain))
	return append(b, 0, 0)
}
