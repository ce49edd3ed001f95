package external_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// A record's timestamp is its time, or null with the number beside it. The record lands in either
// case.
func TestRecordTimes(t *testing.T) {
	t.Parallel()
	for millis, want := range map[int64]string{
		1_718_000_000_123:         "2024-06-10T06:13:20.123Z",
		253_402_300_799_999:       "9999-12-31T23:59:59.999Z",
		-62_135_596_800_000:       "0001-01-01T00:00:00Z",
		0:                         "1970-01-01T00:00:00Z",
		1_718_000_000_123_456:     "", // microseconds
		1_718_000_000_123_456_789: "", // nanoseconds
		253_402_300_800_000:       "", // the year 10000
		math.MaxInt64:             "",
		math.MinInt64:             "",
		1 << 62:                   "",
		-1:                        "", // Kafka's word for none
	} {
		t.Run(fmt.Sprint(millis), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kafkaserver.Embedded(t))
			stamp := func(value string) {
				if err := w.producer.Stamp(t.Context(), w.topic, 0, fetchtest.Stamped{Millis: millis, Value: []byte(value)}); err != nil {
					t.Fatal(err)
				}
			}
			stamp(`{"a":1}`)
			w.land(t, external.JSON(w.name, w.topic, false))
			stamp(`{"a":2}`) // to landers that start from what the first have noted of the newest time
			w.land(t, external.JSON(w.name, w.topic, false))
			rows := w.whole(t)
			if len(rows) != 2 || len(w.deadLetters) != 0 {
				t.Fatalf("rows %v, dead letters %v", rows, w.deadLetters)
			}
			for _, row := range rows {
				at, raw := row["_timestamp"], row["_timestamp_raw"]
				if want != "" && (at != want || raw != nil) || want == "" && (at != nil || raw != json.Number(fmt.Sprint(millis))) {
					t.Errorf("%d became %v, beside it %v; want %q", millis, at, raw, want)
				}
			}
		})
	}
}

// whole returns all rows of the table with all columns.
func (w *world) whole(t *testing.T) (rows []map[string]any) {
	t.Helper()
	c := w.config
	c.ReadOnly, c.Tables = true, []declare.Table{}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	list, err := l.Files(t.Context(), w.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		rows = append(rows, rowsOf(t, read(t, strings.TrimPrefix(f.Path, "file://")))...)
	}
	return rows
}
