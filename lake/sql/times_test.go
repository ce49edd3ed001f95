package sql_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/timeunit"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// SQL returns the times in the tables exactly. ClickHouse only supports dates from 1900 to 2299:
// others are an error that says so, and never a different date.
func TestTimes(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	at := func(of iceberg.Type) *iceberg.Schema {
		return iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "at", Type: of})
	}
	times := []int64{timeunit.MinMicro, -2208988800000001, -1, 0, 10413791999999999, 10413792000000000, timeunit.MaxMicro}
	w.create("times", at(iceberg.PrimitiveTypes.TimestampTz))
	w.append("times", len(times), func(b *array.RecordBuilder, i int) {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(times[i]))
	})
	dates := func(name string, days ...int32) {
		w.create(name, at(iceberg.PrimitiveTypes.Date))
		w.append(name, len(days), func(b *array.RecordBuilder, i int) { b.Field(0).(*array.Date32Builder).Append(arrow.Date32(days[i])) })
	}
	dates("dates", -25567, -1, 0, 120529)
	dates("early", 0, timeunit.MinDay)
	dates("late", timeunit.MaxDay)
	s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	want := "\"at\"\n"
	for _, micros := range times {
		want += fmt.Sprintf("%q\n", time.UnixMicro(micros).UTC().Format("2006-01-02T15:04:05.000000Z"))
	}
	if got := ask(t, s, "SELECT at FROM times", lakesql.FormatCSV); got != want {
		t.Errorf("times are\n%s\nwant\n%s", got, want)
	}
	const inside = "\"at\"\n\"1900-01-01\"\n\"1969-12-31\"\n\"1970-01-01\"\n\"2299-12-31\"\n"
	if got := ask(t, s, "SELECT at FROM dates", lakesql.FormatCSV); got != inside {
		t.Errorf("dates are\n%s\nwant\n%s", got, inside)
	}
	for name, date := range map[string]string{"early": "0001-01-01", "late": "9999-12-31"} {
		got, err := answerOf(t.Context(), s, "SELECT at FROM "+name, lakesql.FormatCSV)
		if says := "column at has the date " + date + ", and ClickHouse"; err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %s, %v; want %s", name, got, err, says)
		}
	}
}

// SQL finds the rows of any time in a table partitioned by time. ClickHouse limits partition days
// to 1970 to 2149, and would otherwise skip files.
func TestTimePartitions(t *testing.T) {
	t.Parallel()
	times := []string{
		"1900-01-01 00:00:00", "1960-06-15 12:34:56", "1969-12-31 22:00:00", "1970-01-01 00:00:00", "2024-02-29 23:59:59", "2149-06-06 23:00:00",
		"2149-06-07 00:00:00", "2155-06-01 12:00:00", "2290-06-01 12:00:00",
	}
	schema := iceberg.NewSchema(0,
		iceberg.NestedField{ID: 1, Name: "at", Type: iceberg.PrimitiveTypes.TimestampTz},
		iceberg.NestedField{ID: 2, Name: "day", Type: iceberg.PrimitiveTypes.Date})
	w := newWarehouse(t)
	tables := map[string]iceberg.PartitionField{
		"hours":  {SourceIDs: []int{1}, Transform: iceberg.HourTransform{}},
		"days":   {SourceIDs: []int{1}, Transform: iceberg.DayTransform{}},
		"months": {SourceIDs: []int{1}, Transform: iceberg.MonthTransform{}},
		"years":  {SourceIDs: []int{1}, Transform: iceberg.YearTransform{}},
		"dates":  {SourceIDs: []int{2}, Transform: iceberg.DayTransform{}},
	}
	for name, by := range tables {
		by.FieldID, by.Name = 1000, "part"
		w.create(name, schema, by)
		w.append(name, len(times), func(b *array.RecordBuilder, i int) {
			at, err := time.Parse(time.DateTime, times[i])
			if err != nil {
				t.Fatal(err)
			}
			b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(at.UnixMicro()))
			b.Field(1).(*array.Date32Builder).Append(arrow.Date32FromTime(at))
		})
	}
	s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	for name := range tables {
		for _, at := range times {
			moment := "toDateTime64('" + at + "', 6, 'UTC')"
			date := "toDate32('" + at[:len(time.DateOnly)] + "')"
			for _, where := range []string{
				"at = " + moment, "at IN (" + moment + ")", "at BETWEEN " + moment + " AND " + moment, "day = " + date, "day IN (" + date + ")",
			} {
				query := "SELECT count() AS n FROM " + name + " WHERE " + where
				if got := ask(t, s, query, lakesql.FormatCSV); got != "\"n\"\n1\n" {
					t.Errorf("%s: %q", query, got)
				}
			}
		}
		early := "SELECT count() AS n FROM merge(currentDatabase(), '^" + name + "$') WHERE at = toDateTime64('" + times[1] + "', 6, 'UTC')"
		if got := ask(t, s, early, lakesql.FormatCSV); got != "\"n\"\n1\n" {
			t.Errorf("%s: %q", early, got)
		}
	}
}
