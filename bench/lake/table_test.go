package main

import (
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/test/servers/catalog"
)

// batchOf returns a batch of events, as a reader of the table returns it.
func batchOf(t *testing.T, events ...event) arrow.RecordBatch {
	t.Helper()
	fields, err := table.SchemaToArrowSchema(schema, nil, true, false)
	if err != nil {
		t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, fields)
	t.Cleanup(b.Release)
	for _, e := range events {
		for i, v := range []any{
			e.ID, e.Customer, e.Type, e.SKU, e.Qty, e.Price, e.Currency, e.Country, e.Device, e.New,
			e.At * 1000, e.Session, e.Page,
		} {
			switch column := b.Field(i).(type) {
			case *array.Int64Builder:
				column.Append(v.(int64))
			case *array.Int32Builder:
				column.Append(v.(int32))
			case *array.Float64Builder:
				column.Append(v.(float64))
			case *array.BooleanBuilder:
				column.Append(v.(bool))
			case *array.TimestampBuilder:
				column.Append(arrow.Timestamp(v.(int64)))
			case *array.StringBuilder:
				column.Append(v.(string))
			default:
				t.Fatalf("column %d is built by %T", i, column)
			}
		}
	}
	batch := b.NewRecordBatch()
	t.Cleanup(batch.Release)
	return batch
}

// TestCheckBatch checks that the comparison finds extra, duplicate and changed rows, in any column.
func TestCheckBatch(t *testing.T) {
	t.Parallel()
	const n = 10
	wrong := func(change func(*event)) event {
		e := eventAt(3)
		change(&e)
		return e
	}
	for name, c := range map[string]struct {
		events []event
		want   string
	}{
		"as produced":  {[]event{eventAt(3), eventAt(0), eventAt(9)}, ""},
		"twice":        {[]event{eventAt(3), eventAt(4), eventAt(3)}, "twice"},
		"beyond":       {[]event{eventAt(10)}, "never produced"},
		"customer":     {[]event{wrong(func(e *event) { e.Customer++ })}, "want"},
		"type":         {[]event{wrong(func(e *event) { e.Type = "" })}, "want"},
		"sku":          {[]event{wrong(func(e *event) { e.SKU += "0" })}, "want"},
		"quantity":     {[]event{wrong(func(e *event) { e.Qty++ })}, "want"},
		"price":        {[]event{wrong(func(e *event) { e.Price += 0.01 })}, "want"},
		"currency":     {[]event{wrong(func(e *event) { e.Currency = "" })}, "want"},
		"country":      {[]event{wrong(func(e *event) { e.Country = "" })}, "want"},
		"device":       {[]event{wrong(func(e *event) { e.Device = "" })}, "want"},
		"new customer": {[]event{wrong(func(e *event) { e.New = !e.New })}, "want"},
		"time":         {[]event{wrong(func(e *event) { e.At++ })}, "want"},
		"session":      {[]event{wrong(func(e *event) { e.Session++ })}, "want"},
		"page":         {[]event{wrong(func(e *event) { e.Page = "" })}, "want"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := checkBatch(batchOf(t, c.events...), n, make([]uint64, 1))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestSteady checks that the steady rate excludes the first and the last commit.
func TestSteady(t *testing.T) {
	t.Parallel()
	at := func(seconds int, added int64) catalog.Commit {
		return catalog.Commit{At: time.Unix(int64(seconds), 0), Added: added}
	}
	for name, c := range map[string]struct {
		commits []catalog.Commit
		want    float64
	}{
		"none":        {nil, 0},
		"too few":     {[]catalog.Commit{at(0, 5), at(10, 1000), at(20, 3)}, 0},
		"four":        {[]catalog.Commit{at(0, 5), at(10, 1000), at(20, 2000), at(30, 3)}, 150},
		"uneven time": {[]catalog.Commit{at(100, 5), at(101, 1000), at(104, 3000), at(130, 3)}, 1000},
	} {
		if got := steady(c.commits); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
