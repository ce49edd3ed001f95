package clickhouse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unsafe"
)

// Texts is a column of texts.
type Texts struct {
	// Bytes has the texts, one after the other.
	Bytes []byte
	// Ends has the index in Bytes after each text.
	Ends []uint32
}

// At returns the text of a row. It shares memory with the column.
func (t *Texts) At(row int) string {
	text := t.Between(row, row+1)
	return unsafe.String(unsafe.SliceData(text), len(text)) //nolint:gosec // of this length
}

// Append appends a text.
func (t *Texts) Append(text string) {
	t.Bytes = append(t.Bytes, text...)
	t.Ends = append(t.Ends, uint32(len(t.Bytes)))
}

// Reset removes all texts.
func (t *Texts) Reset() { t.Bytes, t.Ends = t.Bytes[:0], t.Ends[:0] }

// Between returns the texts of the rows from begin, included, to end, excluded, one after the other.
func (t *Texts) Between(begin, end int) []byte {
	return t.Bytes[t.start(begin):t.start(end)]
}

// start returns the index in Bytes at which the text of a row begins.
func (t *Texts) start(row int) uint32 {
	if row == 0 {
		return 0
	}
	return t.Ends[row-1]
}

// Empty reports whether the text of every row is empty.
func (t *Texts) Empty() bool { return len(t.Bytes) == 0 }

// Columns runs a query and passes its answer to each, block by block and column by column: for
// millions of rows, whose values would cost more one by one than the query itself. columns has a
// pointer for each column of the answer, which each block sets: *[]int64 (for Int64), *[]int32
// (Int32), *[]uint8 (UInt8), *[][4]uint64 (Int256, least significant word first) or *Texts (String).
// The values are valid until each returns.
func (s *Store) Columns(ctx context.Context, sql string, columns []any, each func(rows int) error) (err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	for i, c := range columns {
		if columnType(c) == "" {
			return fmt.Errorf("ClickHouse: column %d cannot be decoded into %T", i, c)
		}
	}
	deadline, _ := ctx.Deadline()
	seconds := max(int(time.Until(deadline).Seconds())+1, 1)
	answer, err := s.client.Query(ctx, sql, "Native", map[string]string{"max_execution_time": strconv.Itoa(seconds)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	from := &remembering{from: answer}
	blocks := blockReader{r: bufio.NewReaderSize(from, blockBuffer)}
	for {
		rows, err := blocks.next(columns)
		switch {
		case err == nil:
		// The end of the answer is before a block. An error of the query interrupts one.
		case from.err != nil && !errors.Is(from.err, io.EOF):
			return from.err
		case err == io.EOF: //nolint:errorlint // next does not wrap it
			return nil
		default:
			return fmt.Errorf("decode ClickHouse's answer: %w", err)
		}
		if rows == 0 {
			continue
		}
		if err := each(rows); err != nil {
			return err
		}
	}
}

// remembering remembers the error that ended a reader: decoders may hide it.
type remembering struct {
	from io.Reader
	err  error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil {
		r.err = err
	}
	return n, err
}
