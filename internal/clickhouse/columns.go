package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unsafe"

	chproto "github.com/ClickHouse/ch-go/proto"
)

// Texts is a column of texts. They are valid until the next block.
type Texts struct {
	column chproto.ColStr
	all    string
}

// At returns the text of a row.
func (t *Texts) At(row int) string {
	p := t.column.Pos[row]
	return t.all[p.Start:p.End]
}

// AppendTo appends the texts of all rows to a slice.
func (t *Texts) AppendTo(texts []string) []string {
	texts = slices.Grow(texts, len(t.column.Pos))
	for _, p := range t.column.Pos {
		texts = append(texts, t.all[p.Start:p.End])
	}
	return texts
}

// Empty reports whether the text of every row is empty.
func (t *Texts) Empty() bool { return len(t.all) == 0 }

// Columns runs a query and passes its answer to each, block by block and column by column: for
// millions of rows, whose values would cost more one by one than the query itself. columns has a
// pointer for each column of the answer, which each block sets: *[]int64 (for Int64), *[]int32
// (Int32), *[]uint8 (UInt8), *[][4]uint64 (Int256, least significant word first) or *Texts (String).
// The values are valid until each returns.
func (s *Store) Columns(ctx context.Context, sql string, columns []any, each func(rows int) error) (err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	results, set, err := targets(columns)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	seconds := max(int(time.Until(deadline).Seconds())+1, 1)
	answer, err := s.client.Query(ctx, sql, "Native", map[string]string{"max_execution_time": strconv.Itoa(seconds)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	from := &remembering{from: answer}
	r := chproto.NewReader(from)
	var block chproto.Block
	for {
		block = chproto.Block{}
		if err := block.DecodeRawBlock(r, 0, results); err != nil {
			switch {
			// The end of the answer is before a block. An error of the query interrupts one.
			case from.err != nil && !errors.Is(from.err, io.EOF):
				return from.err
			case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && block.Columns == 0:
				return nil
			}
			return fmt.Errorf("decode ClickHouse's answer: %w", err)
		}
		if block.Rows == 0 {
			continue
		}
		set()
		if err := each(block.Rows); err != nil {
			return err
		}
	}
}

// targets returns the columns to decode into, and a function that sets the caller's after each block.
func targets(columns []any) (results chproto.Results, set func(), err error) {
	sets := make([]func(), 0, len(columns))
	for i, c := range columns {
		var data chproto.ColResult
		switch to := c.(type) {
		case *[]int64:
			column := new(chproto.ColInt64)
			data = column
			sets = append(sets, func() { *to = *column })
		case *[]int32:
			column := new(chproto.ColInt32)
			data = column
			sets = append(sets, func() { *to = *column })
		case *[]uint8:
			column := new(chproto.ColUInt8)
			data = column
			sets = append(sets, func() { *to = *column })
		case *[][4]uint64:
			column := new(chproto.ColInt256)
			data = column
			sets = append(sets, func() {
				*to = (*to)[:0]
				for _, v := range *column {
					*to = append(*to, [4]uint64{v.Low.Low, v.Low.High, v.High.Low, v.High.High})
				}
			})
		case *Texts:
			data = &to.column
			sets = append(sets, func() {
				// Not copied: both are valid until the next block.
				to.all = unsafe.String(unsafe.SliceData(to.column.Buf), len(to.column.Buf)) //nolint:gosec // of this length
			})
		default:
			return nil, nil, fmt.Errorf("ClickHouse: column %d cannot be decoded into %T", i, c)
		}
		results = append(results, chproto.ResultColumn{Data: data})
	}
	return results, func() {
		for _, set := range sets {
			set()
		}
	}, nil
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
