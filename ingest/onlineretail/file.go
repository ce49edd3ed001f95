package onlineretail

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/millrace/millrace/event"
)

// ErrFile means that the file is not an Online Retail file.
var ErrFile = errors.New("not an Online Retail file")

// columns are the columns that are read, and the types that they may have.
var columns = []struct {
	name  string
	types []arrow.Type
}{
	{"InvoiceNo", []arrow.Type{arrow.STRING, arrow.LARGE_STRING}},
	{"StockCode", []arrow.Type{arrow.STRING, arrow.LARGE_STRING}},
	{"Description", []arrow.Type{arrow.STRING, arrow.LARGE_STRING}},
	{"Country", []arrow.Type{arrow.STRING, arrow.LARGE_STRING}},
	{"Quantity", []arrow.Type{arrow.INT64}},
	{"UnitPrice", []arrow.Type{arrow.FLOAT64}},
	{"CustomerID", []arrow.Type{arrow.FLOAT64}},
	{"InvoiceDate", []arrow.Type{arrow.TIMESTAMP}},
}

// source is an open file. It reads one batch of rows at a time, so its memory does not depend on
// the size of the file.
type source struct {
	parquet *file.Reader
	records pqarrow.RecordReader
	rows    int64 // number of rows
}

// open opens a file and checks its columns. Columns beyond those in columns are ignored.
func open(ctx context.Context, path string) (_ *source, err error) {
	reader, err := file.OpenParquetFile(path, false)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path, err), reader.Close())
		}
	}()
	// Read only the needed columns. A flat file has one leaf per column.
	var leaves []int
	for _, c := range columns {
		leaf := reader.MetaData().Schema.ColumnIndexByName(c.name)
		if leaf < 0 {
			return nil, fmt.Errorf("%w: column %s is missing", ErrFile, c.name)
		}
		leaves = append(leaves, leaf)
	}
	properties := pqarrow.ArrowReadProperties{BatchSize: windowRows}
	decoder, err := pqarrow.NewFileReader(reader, properties, memory.DefaultAllocator)
	if err != nil {
		return nil, err
	}
	records, err := decoder.GetRecordReader(ctx, leaves, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range columns {
		if err := checkColumn(records.Schema(), c.name, c.types); err != nil {
			records.Release()
			return nil, err
		}
	}
	return &source{reader, records, reader.NumRows()}, nil
}

// checkColumn returns an error unless there is one column of this name, and its type is one of
// types.
func checkColumn(schema *arrow.Schema, name string, types []arrow.Type) error {
	fields, _ := schema.FieldsByName(name)
	// Arrow allows several columns of one name.
	if len(fields) != 1 {
		return fmt.Errorf("%w: %d columns are named %s", ErrFile, len(fields), name)
	}
	for _, t := range types {
		if fields[0].Type.ID() == t {
			return nil
		}
	}
	return fmt.Errorf("%w: column %s is of type %s, not %s",
		ErrFile, name, fields[0].Type, strings.ToLower(types[0].String()))
}

// all yields the rows in file order. If reading fails, the last pair is an error.
func (s *source) all() iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		number := int64(0)
		for s.records.Next() {
			read := rowReader(s.records.RecordBatch())
			for i := range int(s.records.RecordBatch().NumRows()) {
				number++
				r := read(i)
				r.number = number
				if !yield(r, nil) {
					return
				}
			}
		}
		if err := s.records.Err(); err != nil {
			yield(row{}, fmt.Errorf("after row %d: %w", number, err))
		}
	}
}

// close releases the batch and closes the file.
func (s *source) close() error {
	s.records.Release()
	return s.parquet.Close()
}

// rowReader returns a function that returns the ith row of a batch. The columns must have been
// checked. The arrays are looked up once per batch, and not for each row.
func rowReader(batch arrow.RecordBatch) func(i int) row {
	// The order of the columns is that of the file, so they are found by name.
	column := func(name string) arrow.Array { return batch.Column(batch.Schema().FieldIndices(name)[0]) }
	text := func(name string) func(int) string {
		values := column(name).(array.StringLike)
		return func(i int) string {
			if values.IsNull(i) {
				return ""
			}
			// Copied, because the value is in the batch's memory.
			return strings.Clone(strings.TrimSpace(values.Value(i)))
		}
	}
	number := func(name string) func(int) float64 {
		values := column(name).(*array.Float64)
		return func(i int) float64 {
			if values.IsNull(i) {
				return math.NaN()
			}
			return values.Value(i)
		}
	}
	invoice, code, description, country := text("InvoiceNo"), text("StockCode"), text("Description"), text("Country")
	price, customer := number("UnitPrice"), number("CustomerID")
	quantity := column("Quantity").(*array.Int64)
	at := column("InvoiceDate").(*array.Timestamp)
	unit := at.DataType().(*arrow.TimestampType).Unit

	return func(i int) row {
		r := row{
			invoice: invoice(i), code: code(i), description: description(i), country: country(i),
			price: price(i), customer: customer(i),
		}
		if r.description == "nan" { // how the file represents a missing description
			r.description = ""
		}
		if quantity.IsValid(i) {
			r.quantity = quantity.Value(i)
		}
		if at.IsValid(i) {
			// The file has local time without a zone, which is taken as UTC.
			r.at = event.Time(at.Value(i).ToTime(unit))
		}
		return r
	}
}
