package lake

import (
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
)

// columns appends rows to Arrow builders, one value after the other in the order of the table's columns.
type columns struct {
	*array.RecordBuilder
	at   int
	rows int // since the builders were last emptied
}

func (c *columns) next() array.Builder {
	b := c.Field(c.at)
	c.at++
	return b
}

// end closes a row.
func (c *columns) end() {
	if c.at != len(c.Fields()) {
		panic("a row does not fill its table's columns")
	}
	c.at = 0
	c.rows++
}

func (c *columns) string(v string) { c.next().(*array.StringBuilder).Append(v) }
func (c *columns) text(v []byte)   { c.next().(*array.StringBuilder).BinaryBuilder.Append(v) }
func (c *columns) binary(v []byte) { c.next().(*array.BinaryBuilder).Append(v) }
func (c *columns) int32(v int32)   { c.next().(*array.Int32Builder).Append(v) }
func (c *columns) int64(v int64)   { c.next().(*array.Int64Builder).Append(v) }
func (c *columns) null()           { c.next().AppendNull() }
func (c *columns) time(v time.Time) {
	c.next().(*array.TimestampBuilder).Append(arrow.Timestamp(v.UnixMicro()))
}
func (c *columns) decimal(v decimal128.Num) {
	c.next().(*array.Decimal128Builder).Append(v)
}

// optional appends v, or null where it is empty.
func (c *columns) optional(v string) {
	if v == "" {
		c.null()
		return
	}
	c.string(v)
}

func (c *columns) origin(r origin) {
	c.string(r.topic)
	c.int32(r.partition)
	c.int64(r.offset)
}
