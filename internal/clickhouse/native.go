package clickhouse

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Limits of a block of an answer. ClickHouse's own blocks have 65,409 rows by default.
const (
	blockBuffer   = 256 << 10
	maxBlockRows  = 1 << 24
	maxHeaderText = 1 << 16 // length of the name and of the type of a column
)

// blockReader decodes the format Native, without the fields that newer revisions of the protocol add.
// ch-go's decoder reads texts byte by byte, which costs several times as much.
type blockReader struct {
	r      *bufio.Reader
	header []byte
}

// next decodes a block into columns, which are pointers that Columns accepts. It returns io.EOF at the
// end.
func (b *blockReader) next(columns []any) (rows int, err error) {
	n, err := binary.ReadUvarint(b.r)
	switch {
	case errors.Is(err, io.EOF):
		return 0, io.EOF
	case err != nil:
		return 0, fmt.Errorf("number of columns: %w", err)
	}
	count, err := b.length(maxBlockRows)
	if err != nil {
		return 0, fmt.Errorf("number of rows: %w", err)
	}
	if n == 0 && count == 0 {
		return 0, nil
	}
	if n != uint64(len(columns)) {
		return 0, fmt.Errorf("%d columns, want %d", n, len(columns))
	}
	for i, to := range columns {
		name, err := b.text()
		if err != nil {
			return 0, fmt.Errorf("name of column %d: %w", i, err)
		}
		kind, err := b.text()
		if err != nil {
			return 0, fmt.Errorf("type of column %q: %w", name, err)
		}
		if want := columnType(to); kind != want {
			return 0, fmt.Errorf("column %q has the type %q, want %s", name, kind, want)
		}
		if err := b.column(to, count); err != nil {
			return 0, fmt.Errorf("column %q: %w", name, err)
		}
	}
	return count, nil
}

// columnType returns the type that is decoded into a pointer, or "" if none is.
func columnType(to any) string {
	switch to.(type) {
	case *[]int64:
		return "Int64"
	case *[]int32:
		return "Int32"
	case *[]uint8:
		return "UInt8"
	case *[][4]uint64:
		return "Int256"
	case *Texts:
		return "String"
	}
	return ""
}

// column decodes the values of a column.
func (b *blockReader) column(to any, rows int) error {
	switch to := to.(type) {
	case *[]int64:
		return fixed(b.r, to, rows, 8, func(p []byte) int64 { return int64(binary.LittleEndian.Uint64(p)) })
	case *[]int32:
		return fixed(b.r, to, rows, 4, func(p []byte) int32 { return int32(binary.LittleEndian.Uint32(p)) })
	case *[]uint8:
		return fixed(b.r, to, rows, 1, func(p []byte) uint8 { return p[0] })
	case *[][4]uint64:
		return fixed(b.r, to, rows, 32, func(p []byte) [4]uint64 {
			word := binary.LittleEndian.Uint64
			return [4]uint64{word(p), word(p[8:]), word(p[16:]), word(p[24:])}
		})
	case *Texts:
		return b.texts(to, rows)
	}
	return fmt.Errorf("cannot be decoded into %T", to)
}

// fixed decodes values of a fixed size. Memory grows with what was read, not with what is announced.
func fixed[T any](r *bufio.Reader, to *[]T, rows, size int, value func([]byte) T) error {
	all := (*to)[:0]
	for len(all) < rows {
		if _, err := r.Peek(size); err != nil { // fills the buffer if it has less
			return unexpected(err)
		}
		n := min(r.Buffered()/size, rows-len(all))
		p, err := r.Peek(n * size)
		if err != nil {
			return unexpected(err)
		}
		all = slices.Grow(all, n)
		for i := range n {
			all = append(all, value(p[i*size:][:size]))
		}
		if _, err := r.Discard(n * size); err != nil {
			return unexpected(err)
		}
	}
	*to = all
	return nil
}

// texts decodes texts: each has its length before it.
func (b *blockReader) texts(to *Texts, rows int) error {
	to.Reset()
	for len(to.Ends) < rows {
		if _, err := b.r.Peek(1); err != nil { // fills the buffer if it is empty
			return unexpected(err)
		}
		p, err := b.r.Peek(b.r.Buffered())
		if err != nil {
			return unexpected(err)
		}
		if len(to.Bytes) > math.MaxUint32-len(p) {
			return errors.New("the texts of a block have more than 4 GiB")
		}
		used := 0
		for len(to.Ends) < rows {
			length, n := uint64(0), 1
			if used < len(p) && p[used] < 0x80 { // nearly always
				length = uint64(p[used])
			} else {
				length, n = binary.Uvarint(p[used:])
			}
			if n <= 0 || length > uint64(len(p)-used-n) {
				break
			}
			used += n
			to.Bytes = append(to.Bytes, p[used:used+int(length)]...)
			to.Ends = append(to.Ends, uint32(len(to.Bytes)))
			used += int(length)
		}
		if _, err := b.r.Discard(used); err != nil {
			return unexpected(err)
		}
		if used > 0 {
			continue
		}
		// The text is longer than what is buffered.
		if err := b.longText(to); err != nil {
			return err
		}
	}
	return nil
}

// longText decodes one text of any length.
func (b *blockReader) longText(to *Texts) error {
	length, err := b.length(math.MaxUint32 - len(to.Bytes))
	if err != nil {
		return err
	}
	for length > 0 {
		n := min(length, blockBuffer)
		begin := len(to.Bytes)
		to.Bytes = append(to.Bytes, make([]byte, n)...)
		if _, err := io.ReadFull(b.r, to.Bytes[begin:]); err != nil {
			return unexpected(err)
		}
		length -= n
	}
	to.Ends = append(to.Ends, uint32(len(to.Bytes)))
	return nil
}

// length reads a number that may not exceed a limit.
func (b *blockReader) length(limit int) (int, error) {
	n, err := binary.ReadUvarint(b.r)
	if err != nil {
		return 0, unexpected(err)
	}
	if n > uint64(limit) {
		return 0, fmt.Errorf("%d is more than %d", n, limit)
	}
	return int(n), nil
}

// text reads the name or the type of a column.
func (b *blockReader) text() (string, error) {
	n, err := b.length(maxHeaderText)
	if err != nil {
		return "", err
	}
	b.header = slices.Grow(b.header[:0], n)[:n]
	if _, err := io.ReadFull(b.r, b.header); err != nil {
		return "", unexpected(err)
	}
	return string(b.header), nil
}

// unexpected returns the error of an answer that ends in the middle of a block.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
