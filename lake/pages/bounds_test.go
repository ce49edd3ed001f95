package pages_test

import (
	"encoding/binary"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/columnar"
)

// Bounds hold for any values.
func TestBounds(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 255)
	nan, zero := math.NaN(), 0.0
	double := func(values ...float64) (bounds []string) {
		for _, v := range values {
			bounds = append(bounds, string(binary.LittleEndian.AppendUint64(nil, math.Float64bits(v))))
		}
		return bounds
	}
	texts, binaries, doubles := iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Binary, iceberg.PrimitiveTypes.Float64
	for _, test := range []struct {
		name       string
		of         columnar.Type
		values     []string
		want       []string // lowest and highest; none if there are none
		low, high  bool     // they were cut
		nans, null int64
	}{
		{name: "an empty text", of: texts, values: []string{"one", ""}, want: []string{"", "one"}},
		{name: "bytes, not characters, are compared", of: texts, values: []string{"\uffff", "\U00010000", "z"}, want: []string{"z", "\U00010000"}},
		{name: "equal begins", of: texts, values: []string{"12345678b", "12345678", "12345678\x00", "12345678a"}, want: []string{"12345678", "12345678b"}},
		{name: "short ones, and zeros", of: binaries, values: []string{"a\x00", "a", "a\x00\x00"}, want: []string{"a", "a\x00\x00"}},
		{name: "as long as may be", of: texts, values: []string{long + "b"}, want: []string{long + "b", long + "b"}},
		{name: "cut", of: texts, values: []string{long + "bc"}, want: []string{long + "b", long + "c"}, low: true, high: true},
		{name: "cut between characters", of: texts, values: []string{long + "é"}, want: []string{long, long[1:] + "b"}, low: true, high: true},
		{
			name: "above the last character comes the one before", of: texts, values: []string{long[3:] + "\U0010ffffx"},
			want: []string{long[3:] + "\U0010ffff", long[4:] + "b"}, low: true, high: true,
		},
		{name: "no half of a character", of: texts, values: []string{long[2:] + "\ud7ffx"}, want: []string{long[2:] + "\ud7ff", long[2:] + "\ue000"}, low: true, high: true},
		{name: "bytes cut", of: binaries, values: []string{long + "\xffx"}, want: []string{long + "\xff", long[1:] + "b"}, low: true, high: true},
		{
			name: "nothing is above", of: binaries, values: []string{strings.Repeat("\xff", 300)},
			want: []string{strings.Repeat("\xff", 256), strings.Repeat("\xff", 300)}, low: true,
		},
		{name: "no number", of: doubles, values: double(nan, nan), nans: 2},
		{name: "some are numbers", of: doubles, values: double(nan, 3, nan, -2), want: double(-2, 3), nans: 2},
		{name: "one zero stands for both", of: doubles, values: double(zero), want: double(math.Copysign(0, -1), 0)},
		{name: "the other too", of: doubles, values: double(math.Copysign(0, -1)), want: double(math.Copysign(0, -1), 0)},
		{name: "infinite", of: doubles, values: double(math.Inf(1), math.Inf(1)), want: double(math.Inf(1), math.Inf(1))},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, pages := range []int{1, 2} {
				c, col := one(t, field{Name: "a", Type: test.of, ID: 1})
				w := begin(t, c, io.Discard)
				for _, v := range test.values {
					switch col := col.(type) {
					case *columnar.Float64s:
						col.Append(math.Float64frombits(binary.LittleEndian.Uint64([]byte(v))))
					case *columnar.Bytes:
						col.AppendString(v)
					}
					if pages == 2 || c.Rows() == len(test.values) {
						if err := w.Write(c); err != nil {
							t.Fatal(err)
						}
						c.Reset()
					}
				}
				f := end(t, w)
				have := f.Metadata.RowGroups[0].Columns[0].MetaData.Statistics
				if have.MinValue == nil != (len(test.want) == 0) {
					t.Fatalf("there are bounds: %q", have.MinValue)
				}
				if len(test.want) > 0 && (string(have.MinValue) != test.want[0] || string(have.MaxValue) != test.want[1]) {
					t.Errorf("bounds are %q and %q", have.MinValue, have.MaxValue)
				}
				if low, high := have.IsMinValueExact != nil, have.IsMaxValueExact != nil; low != test.low || high != test.high {
					t.Errorf("truncated: %v, %v", low, high)
				}
				if f.NaNs[1] != test.nans {
					t.Errorf("%d NaNs", f.NaNs[1])
				}
				if _, counted := f.NaNs[1]; counted != (test.of == doubles) {
					t.Errorf("NaN counts: %v", counted)
				}
			}
		})
	}
}
