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

// SQL answers with the times that the tables have. Of dates ClickHouse knows those of 1900 to 2299: another one is an error that says
// so, and never another date.
func TestTimesAreThoseOfTheTable(t *testing.T) {
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
