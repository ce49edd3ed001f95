package feast

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// Limits of a table of entities.
const (
	maxRows    = 10_000_000
	maxColumns = 1_000
	maxBuffers = 256 << 20 // bytes of buffers that arrive compressed
	maxKey     = 256       // bytes of a key
	pieceRows  = 8192      // rows of a record batch of the answer
)

// The names of columns with a meaning.
const (
	eventTimestamp = "event_timestamp"
	// KnownColumn is the column of the entities with the time whose knowledge a row is given.
	KnownColumn = "as_known_at"
)

// entities is the table that a client sends: a row for each vector that it wants.
type entities struct {
	command []byte
	schema  *arrow.Schema // of pieces
	pieces  []arrow.RecordBatch
	rows    int64
}

// receive reads a table from a stream.
func receive(from flight.DataStreamReader) (_ *entities, err error) {
	defer func() {
		if r := recover(); r != nil { // Arrow's reader and its validation panic about some damage
			err = bad("entity_df is damaged: %v", r)
		}
	}()
	r, err := flight.NewRecordReader(checked{from}, ipc.WithAllocator(&bounded{memory.DefaultAllocator, maxBuffers}))
	if err != nil {
		return nil, unreadable(err)
	}
	defer r.Release()
	e := &entities{}
	if d := r.LatestFlightDescriptor(); d != nil {
		e.command = d.Cmd
	}
	columns := e.project(r.Schema())
	if len(columns) > maxColumns {
		return nil, bad("entity_df has more than %d columns", maxColumns)
	}
	for r.Next() {
		batch := r.RecordBatch()
		if e.rows += batch.NumRows(); batch.NumRows() > maxRows || e.rows > maxRows {
			return nil, bad("entity_df has more than %d rows: split it", maxRows)
		}
		if err := array.ValidateRecordFull(batch); err != nil {
			return nil, unreadable(err)
		}
		kept := make([]arrow.Array, len(columns))
		for i, column := range columns {
			kept[i] = batch.Column(column)
		}
		whole := array.NewRecordBatch(e.schema, kept, batch.NumRows())
		for at := int64(0); at < whole.NumRows(); at += pieceRows {
			e.pieces = append(e.pieces, whole.NewSlice(at, min(at+pieceRows, whole.NumRows())))
		}
	}
	if err := r.Err(); err != nil {
		return nil, unreadable(err)
	}
	return e, nil
}

// project sets the schema of a table without what pandas adds to it, and returns the columns that
// remain.
func (e *entities) project(schema *arrow.Schema) (columns []int) {
	var fields []arrow.Field
	for i, f := range schema.Fields() {
		if strings.HasPrefix(f.Name, "__index_level_") {
			continue
		}
		fields, columns = append(fields, f), append(columns, i)
	}
	e.schema = arrow.NewSchema(fields, nil)
	return columns
}

// unreadable returns the error about a stream that could not be read. Errors of its transport pass.
func unreadable(err error) error {
	var of *transport
	if errors.As(err, &of) {
		return of.error
	}
	if errors.Is(err, io.EOF) {
		return bad("the stream ended before the schema of entity_df")
	}
	return bad("entity_df is damaged: %s", err)
}

// bounded is an allocator with a limit: a compressed buffer says itself how large it is.
type bounded struct {
	memory.Allocator
	left int
}

func (b *bounded) take(n int) {
	if n < 0 || n > b.left {
		panic(fmt.Errorf("compressed buffers of more than %d bytes", maxBuffers))
	}
	b.left -= n
}

// Allocate implements memory.Allocator. The reader turns a panic into an error.
func (b *bounded) Allocate(n int) []byte {
	b.take(n)
	return b.Allocator.Allocate(n)
}

// Reallocate implements memory.Allocator.
func (b *bounded) Reallocate(n int, old []byte) []byte {
	b.take(max(n-len(old), 0))
	return b.Allocator.Reallocate(n, old)
}

// mock reports whether the table is the one that clients send if they have none.
func (e *entities) mock() bool { return e.schema.NumFields() == 1 && e.schema.Field(0).Name == "key" }

// times returns the column of the event time, and that of the known time or -1. As in Feast, the event
// time is event_timestamp, or the only column of timestamps.
func (e *entities) times() (at, known int, err error) {
	at, known = -1, -1
	var stamps []string
	for i, f := range e.schema.Fields() {
		switch stamp := f.Type.ID() == arrow.TIMESTAMP; {
		case f.Name == eventTimestamp || f.Name == KnownColumn:
			if !stamp {
				return 0, 0, bad("entity_df: column %s has the type %s, want timestamps: convert it with pandas.to_datetime",
					f.Name, f.Type)
			}
			if f.Name == KnownColumn {
				known = i
			} else {
				at, stamps = i, []string{f.Name}
			}
		case stamp && (at < 0 || e.schema.Field(at).Name != eventTimestamp):
			at, stamps = i, append(stamps, f.Name)
		}
	}
	switch {
	case len(stamps) == 0:
		return 0, 0, bad("entity_df has no column %s of timestamps", eventTimestamp)
	case len(stamps) > 1:
		return 0, 0, bad("entity_df has several columns of timestamps (%s) and none is %s: rename the one of the row's time",
			strings.Join(stamps, ", "), eventTimestamp)
	}
	return at, known, nil
}

// check returns an error if a column has the name of another one, or of an output.
func (e *entities) check(outputs []output) error {
	for i, f := range e.schema.Fields() {
		if e.schema.FieldIndices(f.Name)[0] != i {
			return bad("entity_df has two columns %s", f.Name)
		}
		if slices.ContainsFunc(outputs, func(o output) bool { return o.name == f.Name }) {
			return bad("entity_df has a column %s, which is also the name of a feature: rename it, or use full_feature_names",
				f.Name)
		}
	}
	return nil
}

// spine writes what the join of one entity needs to a Parquet file.
func (e *entities) spine(path string, key string, times ...int) (err error) {
	columns := e.schema.FieldIndices(key)
	if len(columns) == 0 {
		return bad("entity_df has no column %s, the key of the features", key)
	}
	fields := []arrow.Field{{Name: key, Type: arrow.BinaryTypes.String, Nullable: true}}
	convert := []func(arrow.Array) (arrow.Array, error){keys}
	for _, column := range times {
		columns = append(columns, column)
		fields = append(fields, arrow.Field{Name: e.schema.Field(column).Name, Nullable: true,
			Type: arrow.FixedWidthTypes.Timestamp_us})
		convert = append(convert, micros)
	}
	f, err := os.Create(path) //nolint:gosec // in a folder of this program
	if err != nil {
		return err
	}
	schema := arrow.NewSchema(fields, nil)
	w, err := pqarrow.NewFileWriter(schema, f, parquet.NewWriterProperties(), pqarrow.DefaultWriterProps())
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer func() { err = errors.Join(err, w.Close()) }() // which closes the file
	for _, piece := range e.pieces {
		converted := make([]arrow.Array, len(columns))
		for i, column := range columns {
			if converted[i], err = convert[i](piece.Column(column)); err != nil {
				return bad("entity_df: column %s: %s", fields[i].Name, err)
			}
		}
		if err := w.WriteBuffered(array.NewRecordBatch(schema, converted, piece.NumRows())); err != nil {
			return fmt.Errorf("write the spine: %w", err)
		}
	}
	return nil
}

// keys returns the values of a column as names of entities: texts as they are, and integers in
// decimal. Many rows may refer to one text, so without a limit of its length a small table could need
// much memory.
func keys(from arrow.Array) (arrow.Array, error) {
	text, err := texts(from)
	if err != nil {
		return nil, err
	}
	b := array.NewStringBuilder(memory.DefaultAllocator)
	b.Reserve(from.Len())
	for i := range from.Len() {
		if isNull(from, i) {
			b.AppendNull()
			continue
		}
		key := text(i)
		if len(key) > maxKey {
			return nil, fmt.Errorf("a key has %d bytes, more than %d", len(key), maxKey)
		}
		b.Append(key)
	}
	return b.NewArray(), nil
}

// texts returns a function that returns a value that is not null as a text.
func texts(from arrow.Array) (func(int) string, error) {
	switch a := from.(type) {
	case *array.String:
		return a.Value, nil
	case *array.LargeString:
		return a.Value, nil
	case *array.StringView:
		return a.Value, nil
	case *array.Int64:
		return decimal(a.Value), nil
	case *array.Int32:
		return decimal(a.Value), nil
	case *array.Int16: // pandas makes integers as small as they fit
		return decimal(a.Value), nil
	case *array.Int8:
		return decimal(a.Value), nil
	case *array.Uint64:
		return func(i int) string { return strconv.FormatUint(a.Value(i), 10) }, nil
	case *array.Uint32:
		return decimal(a.Value), nil
	case *array.Uint16:
		return decimal(a.Value), nil
	case *array.Uint8:
		return decimal(a.Value), nil
	case *array.Dictionary: // a category of pandas
		value, err := texts(a.Dictionary())
		if err != nil {
			return nil, err
		}
		return func(i int) string { return value(a.GetValueIndex(i)) }, nil
	}
	return nil, fmt.Errorf("keys have the type %s, want texts or integers", from.DataType())
}

// decimal returns a function that returns an integer in decimal.
func decimal[T int8 | int16 | int32 | int64 | uint8 | uint16 | uint32](value func(int) T) func(int) string {
	return func(i int) string { return strconv.FormatInt(int64(value(i)), 10) }
}

// isNull reports whether a value is null. A dictionary may have null, too.
func isNull(from arrow.Array, i int) bool {
	if d, ok := from.(*array.Dictionary); ok && !d.IsNull(i) {
		return isNull(d.Dictionary(), d.GetValueIndex(i))
	}
	return from.IsNull(i)
}

// micros returns timestamps in microseconds, rounded down: facts have whole microseconds, so none of
// them lies between.
func micros(from arrow.Array) (arrow.Array, error) {
	stamps, ok := from.(*array.Timestamp)
	if !ok {
		return nil, fmt.Errorf("the type %s is not one of timestamps", from.DataType())
	}
	unit := from.DataType().(*arrow.TimestampType).Unit
	b := array.NewTimestampBuilder(memory.DefaultAllocator, arrow.FixedWidthTypes.Timestamp_us.(*arrow.TimestampType))
	b.Reserve(from.Len())
	for i := range from.Len() {
		if from.IsNull(i) {
			b.AppendNull()
			continue
		}
		b.Append(arrow.Timestamp(inMicros(int64(stamps.Value(i)), unit)))
	}
	return b.NewArray(), nil
}

// inMicros converts a number of units. What is too large for microseconds becomes a time that the join
// rejects, with the number of the row.
func inMicros(n int64, unit arrow.TimeUnit) int64 {
	factor := int64(1)
	switch unit {
	case arrow.Nanosecond:
		down := n / 1_000
		if n%1_000 < 0 {
			down--
		}
		return down
	case arrow.Second:
		factor = 1_000_000
	case arrow.Millisecond:
		factor = 1_000
	}
	if n > math.MaxInt64/factor-1 || n < math.MinInt64/factor+1 {
		return math.MinInt64
	}
	return n * factor
}
