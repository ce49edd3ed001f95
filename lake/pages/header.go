package pages

import (
	"encoding/binary"

	"github.com/apache/arrow-go/v18/parquet"
)

// A page's header is a struct in Thrift's compact protocol: each field begins with a byte that has
// its distance from the field before, and its type; numbers are zigzag varints; a struct ends with
// 0.
const (
	thriftNumber = 0x05
	thriftStruct = 0x0c
	thriftNext   = 0x10 // to the next field
)

const (
	dataPage       = 0
	dictionaryPage = 2
)

func appendNumber(b []byte, v int) []byte {
	return binary.AppendVarint(append(b, thriftNext|thriftNumber), int64(v))
}

// appendDataHeader appends the header of a data page of version 1.
func appendDataHeader(b []byte, values int, encoding parquet.Encoding, size, compressed int) []byte {
	b = appendNumber(appendNumber(appendNumber(b, dataPage), size), compressed)
	b = append(b, 2*thriftNext|thriftStruct) // field 5; there is no checksum
	b = appendNumber(appendNumber(b, values), int(encoding))
	b = appendNumber(b, int(parquet.Encodings.RLE)) // of definition levels
	b = appendNumber(b, int(parquet.Encodings.RLE)) // of repetition levels
	return append(b, 0, 0)
}

// appendDictionaryHeader appends the header of a dictionary.
func appendDictionaryHeader(b []byte, values, size, compressed int) []byte {
	b = appendNumber(appendNumber(appendNumber(b, dictionaryPage), size), compressed)
	b = append(b, 4*thriftNext|thriftStruct) // field 7
	b = appendNumber(appendNumber(b, values), int(parquet.Encodings.Plain))
	return append(b, 0, 0)
}
