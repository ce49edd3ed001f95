package avro_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	twmb "github.com/twmb/avro"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
)

// Times that fit the column are exact. Others are errors, which make dead letters and leave nothing
// behind.
func TestTimesAreExactOrRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		logical, of string
		scale       int64 // to the column's unit
		least, most int64
	}{
		{"timestamp-millis", "long", 1000, timeunit.MinMicro / 1000, timeunit.MaxMicro / 1000},
		{"timestamp-micros", "long", 1, timeunit.MinMicro, timeunit.MaxMicro},
		{"timestamp-nanos", "long", 1, math.MinInt64, math.MaxInt64},
		{"local-timestamp-millis", "long", 1, timeunit.MinMicro / 1000, timeunit.MaxMicro / 1000},
		{"local-timestamp-micros", "long", 1, timeunit.MinMicro, timeunit.MaxMicro},
		{"local-timestamp-nanos", "long", 1, math.MinInt64, math.MaxInt64},
		{"time-micros", "long", 1, 0, timeunit.MicrosPerDay - 1},
		{"time-millis", "int", 1000, 0, timeunit.MicrosPerDay/1000 - 1},
		{"date", "int", 1, timeunit.MinDay, timeunit.MaxDay},
	} {
		t.Run(c.logical, func(t *testing.T) {
			t.Parallel()
			schema := fmt.Sprintf(`{"type":"record","name":"R","fields":[{"name":"s","type":"string"},{"name":"at","type":{"type":%q,"logicalType":%q}}]}`, c.of, c.logical)
			plain := fmt.Sprintf(`{"type":"record","name":"R","fields":[{"name":"s","type":"string"},{"name":"at","type":%q}]}`, c.of)
			p := compile(t, schema)
			writer, err := twmb.Parse(plain)
			if err != nil {
				t.Fatal(err)
			}
			rapid.Check(t, func(r *rapid.T) {
				n := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{
					c.least, c.most, c.least - 1, c.most + 1, math.MaxInt64, math.MinInt64, 1_718_000_000_123_456, 1_718_000_000_123_456_789,
				})).Draw(r, "n")
				var value any = n
				if c.of == "int" {
					n = int64(int32(n))
					value = int32(n)
				}
				b, err := writer.Encode(map[string]any{"s": "x", "at": value})
				if err != nil {
					r.Fatal(err)
				}
				columns := columnsOf(t, p.Fields())
				d, err := p.Bind(columns)
				if err != nil {
					r.Fatal(err)
				}
				err = d.Append(b)
				if fits := n >= c.least && n <= c.most; fits != (err == nil) {
					r.Fatalf("%d: %v", n, err)
				}
				switch col := columns.Column(1).(type) {
				case *columnar.Int64s:
					if err == nil && col.Values()[0] != n*c.scale {
						r.Fatalf("%d became %d", n, col.Values()[0])
					}
				case *columnar.Int32s:
					if err == nil && int64(col.Values()[0]) != n {
						r.Fatalf("%d became %d", n, col.Values()[0])
					}
				}
				if err != nil && (columns.Rows() != 0 || !strings.HasPrefix(err.Error(), "at: ")) {
					r.Fatalf("%d rows are left, and the error is %v", columns.Rows(), err)
				}
			})
		})
	}
}
