package clickhouse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"

	"github.com/millrace/millrace/internal/failpoint"
)

// Limits of a batch. The server inserts a batch within them as one block: all of it or nothing in
// each partition of the table.
const (
	MaxBatchRows  = 1_000_000
	MaxBatchBytes = 256 << 20 // encoded
)

// Batch collects the rows of one insert, column by column or row by row. It can be sent again after
// an error. It is not safe for concurrent use.
type Batch struct {
	store     *Store
	table     string
	statement string
	token     string
	block     *proto.Block
	buffer    chproto.Buffer // of the encoded rows, for the next batch, too
	body      []byte         // what is sent, from the first Send on
	sent      bool
}

// Batch returns an empty batch for some columns of a table, or for all that are not computed.
//
// A token makes the insert idempotent: the table discards a batch whose token is one of the last
// Table.Window tokens. Batches with the same token must have the same rows. An empty token means one
// that no other batch has, so only repeated calls of Send are deduplicated.
func (s *Store) Batch(t Table, token string, columns ...string) (*Batch, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	b := &Batch{
		store: s, table: t.Name, token: orRandom(token),
		block: &proto.Block{ServerContext: &column.ServerContext{Timezone: time.UTC}},
	}
	var names []string
	for _, c := range t.Columns {
		if !c.inserted() || len(columns) > 0 && !slices.Contains(columns, c.Name) {
			continue
		}
		if err := b.block.AddColumn(c.Name, column.Type(c.Type)); err != nil {
			return nil, fmt.Errorf("ClickHouse table %s: column %s of type %s: %w", t.Name, c.Name, c.Type, err)
		}
		names = append(names, quoteName(c.Name))
	}
	if len(columns) > 0 && len(names) != len(columns) {
		return nil, fmt.Errorf("ClickHouse table %s: not all of the columns %v can be inserted", t.Name, columns)
	}
	b.statement = "INSERT INTO " + t.FullName() + " (" + strings.Join(names, ", ") + ") FORMAT Native"
	return b, nil
}

// Rows returns the number of rows.
func (b *Batch) Rows() int { return b.block.Rows() }

// Append appends a row: a value for each column, in the order of the table's definition. After an
// error, the batch must be reset.
func (b *Batch) Append(values ...any) error {
	if err := b.open(); err != nil {
		return err
	}
	for i, v := range values {
		if err := checkTime(v); err != nil && i < len(b.block.Columns) {
			return fmt.Errorf("append a row: column %s: %w", b.block.Columns[i].Name(), err)
		}
	}
	if err := b.block.Append(values...); err != nil {
		return fmt.Errorf("append a row: %w", err)
	}
	return nil
}

// Column returns the nth column, to which values can be appended independently of the others. In
// the end, all columns must have the same number of values.
func (b *Batch) Column(n int) BatchColumn { return BatchColumn{b, b.block.Columns[n]} }

// BatchColumn is a column of a Batch.
type BatchColumn struct {
	batch  *Batch
	column column.Interface
}

// Append appends all values of a slice.
func (c BatchColumn) Append(values any) error {
	if err := c.batch.open(); err != nil {
		return err
	}
	if times, ok := values.([]time.Time); ok {
		for _, t := range times {
			if err := checkTime(t); err != nil {
				return fmt.Errorf("column %s: %w", c.column.Name(), err)
			}
		}
	}
	if _, err := c.column.Append(values); err != nil {
		return fmt.Errorf("column %s: %w", c.column.Name(), err)
	}
	return nil
}

// AppendRow appends one value.
func (c BatchColumn) AppendRow(value any) error {
	if err := c.batch.open(); err != nil {
		return err
	}
	if err := checkTime(value); err != nil {
		return fmt.Errorf("column %s: %w", c.column.Name(), err)
	}
	if err := c.column.AppendRow(value); err != nil {
		return fmt.Errorf("column %s: %w", c.column.Name(), err)
	}
	return nil
}

// The times that nanoseconds in an int64 can represent. The driver computes with those, and would
// insert another time instead of an error.
var (
	firstTime = time.Unix(0, math.MinInt64)
	lastTime  = time.Unix(0, math.MaxInt64)
)

// checkTime returns an error if value is a time that cannot be inserted.
func checkTime(value any) error {
	t, ok := value.(time.Time)
	if p, is := value.(*time.Time); is && p != nil {
		t, ok = *p, true
	}
	if ok && (t.Before(firstTime) || t.After(lastTime)) {
		return fmt.Errorf("time %s is not between %s and %s", t, firstTime.UTC(), lastTime.UTC())
	}
	return nil
}

// open returns an error if the batch accepts no more rows.
func (b *Batch) open() error {
	if b.body != nil || b.sent {
		return errors.New("the batch has been sent; reset it before appending rows")
	}
	return nil
}

// Reset empties the batch for other rows under another token. It keeps the memory.
func (b *Batch) Reset(token string) {
	b.block.Reset()
	b.token, b.body, b.sent = orRandom(token), nil, false
}

// orRandom returns the token, or a random one if it is empty. Without a token, ClickHouse would
// discard a batch that equals an earlier one.
func orRandom(token string) string {
	if token == "" {
		return rand.Text()
	}
	return token
}

// Send inserts the rows and returns when they are in the table. A batch without rows is not sent.
// After an error that is Retryable, Send may be called again.
func (b *Batch) Send(ctx context.Context) error {
	if b.sent {
		return errors.New("the batch has been sent")
	}
	if b.body == nil {
		if b.Rows() == 0 {
			b.sent = true
			return nil
		}
		var err error
		if b.body, err = b.encode(); err != nil {
			return err
		}
	}
	ctx, cancel := b.store.bound(ctx)
	defer cancel()
	// An injected error is like a lost connection: before the insert, or with its answer.
	if err := failpoint.Hit("clickhouse." + b.table + ".insert.before"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if err := b.store.client.Insert(ctx, b.statement, b.body, b.settings(ctx)); err != nil {
		return err
	}
	if err := failpoint.Hit("clickhouse." + b.table + ".insert.after"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	b.body, b.sent = nil, true
	return nil
}

// settings returns the settings of the insert.
func (b *Batch) settings(ctx context.Context) map[string]string {
	deadline, _ := ctx.Deadline()
	settings := map[string]string{
		// An asynchronous insert, the default of recent servers, ignores tokens.
		"async_insert":               "0",
		"insert_deduplicate":         "1",
		"insert_deduplication_token": b.token,
		"max_execution_time":         strconv.Itoa(int(math.Ceil(max(time.Until(deadline).Seconds(), 1)))),
	}
	if !b.store.local {
		settings["decompress"] = "1"
	}
	return settings
}

// frameContent is the content of one compressed frame, in bytes.
const frameContent = 1 << 20

// encode returns the rows as one block of the native format. It is compressed for a server
// elsewhere.
func (b *Batch) encode() ([]byte, error) {
	if n := b.Rows(); n > MaxBatchRows {
		return nil, fmt.Errorf("a batch of %d rows: the limit is %d", n, MaxBatchRows)
	}
	b.buffer.Reset()
	// Revision 0 is that of the HTTP interface.
	if err := b.block.EncodeHeader(&b.buffer, 0); err != nil {
		return nil, fmt.Errorf("encode a batch: %w", err)
	}
	for i := range b.block.Columns {
		if err := b.block.EncodeColumn(&b.buffer, 0, i); err != nil {
			return nil, fmt.Errorf("encode a batch: %w", err)
		}
		if len(b.buffer.Buf) > MaxBatchBytes {
			return nil, fmt.Errorf("a batch of more than %d bytes", MaxBatchBytes)
		}
	}
	if b.store.local {
		return b.buffer.Buf, nil
	}
	var body []byte
	frames := compress.NewWriter(0, compress.LZ4)
	for content := range slices.Chunk(b.buffer.Buf, frameContent) {
		if err := frames.Compress(content); err != nil {
			return nil, fmt.Errorf("compress a batch: %w", err)
		}
		body = append(body, frames.Data...)
	}
	return body, nil
}
