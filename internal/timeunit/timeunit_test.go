package timeunit_test

import (
	"math"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/timeunit"
)

// number draws numbers where conversions fail: at the limits of 64 bits, at the limits of the
// calendar, and in neighbouring units.
func number() *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{
		0, -1, 1, math.MaxInt64, math.MinInt64, math.MaxInt64 / 1000, math.MinInt64 / 1000, math.MaxInt64/1000 + 1,
		1_718_000_000, 1_718_000_000_123, 1_718_000_000_123_456, 1_718_000_000_123_456_789, 1 << 58, 1 << 62,
		timeunit.MinSecond, timeunit.MaxSecond, timeunit.MinSecond - 1, timeunit.MaxSecond + 1,
		timeunit.MinMicro, timeunit.MaxMicro, timeunit.MinMicro - 1, timeunit.MaxMicro + 1,
		timeunit.MinMicro / 1000, timeunit.MaxMicro / 1000, timeunit.MinMicro/1000 - 1, timeunit.MaxMicro/1000 + 1,
	}), rapid.Int64Range(-4_102_444_800_000, 4_102_444_800_000))
}

// exactly checks, with unbounded numbers, that micros times scale is the number if it is a valid
// time, and that ok is false otherwise.
func exactly(t *rapid.T, n int64, scale int64, micros int64, ok bool) {
	want := new(big.Int).Mul(big.NewInt(n), big.NewInt(scale))
	isTime := want.Cmp(big.NewInt(timeunit.MinMicro)) >= 0 && want.Cmp(big.NewInt(timeunit.MaxMicro)) <= 0
	if ok != isTime {
		t.Fatalf("%d × %d µs: ok is %v, want %v", n, scale, ok, isTime)
	}
	if ok && want.Cmp(big.NewInt(micros)) != 0 {
		t.Fatalf("%d × %d µs became %d µs", n, scale, micros)
	}
}

// Every conversion returns the exact time, or reports that there is none.
func TestConversionsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := number().Draw(t, "n")
		millis, ok := timeunit.OfMillis(n)
		exactly(t, n, 1000, millis, ok)
		micros, ok := timeunit.OfMicros(n)
		exactly(t, n, 1, micros, ok)
		seconds, ok := timeunit.OfSeconds(n, 0)
		exactly(t, n, 1_000_000, seconds, ok)
		if at := timeunit.Time(n); !at.IsZero() && at.UnixMilli() != n {
			t.Fatalf("%d ms became %s", n, at)
		}
	})
}

// A time.Time keeps its microseconds, and years out of range are rejected.
func TestTimesKeepMicroseconds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(timeunit.MinMicro, timeunit.MaxMicro).Draw(t, "micros")
		below := rapid.Int64Range(0, 999).Draw(t, "nanos")
		at := time.UnixMicro(n).Add(time.Duration(below))
		if got, ok := timeunit.Of(at); !ok || got != n {
			t.Fatalf("%s is %d, %v; want %d", at, got, ok, n)
		}
	})
	for _, year := range []int{0, -1, 10_000, 56_411, 292_000} {
		if got, ok := timeunit.Of(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)); ok {
			t.Errorf("year %d became %d", year, got)
		}
	}
}

// A duration is exact, or reported as out of range.
func TestDurations(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seconds, nanos := number().Draw(t, "seconds"), rapid.Int32().Draw(t, "nanos")
		if rapid.Bool().Draw(t, "of a second") {
			nanos %= 1_000_000_000
		}
		got, ok := timeunit.Nanoseconds(seconds, nanos)
		want := new(big.Int).Mul(big.NewInt(seconds), big.NewInt(1_000_000_000))
		want.Add(want, big.NewInt(int64(nanos)))
		valid := nanos > -1_000_000_000 && nanos < 1_000_000_000 && (seconds <= 0 || nanos >= 0) &&
			(seconds >= 0 || nanos <= 0)
		if ok && (!valid || want.Cmp(big.NewInt(got)) != 0) {
			t.Fatalf("%d s %d ns became %d ns", seconds, nanos, got)
		}
		// -2^63 itself is refused: it has no magnitude of 63 bits.
		if fits := want.IsInt64() && want.Cmp(big.NewInt(math.MinInt64)) != 0; !ok && valid && fits {
			t.Fatalf("%d s %d ns were rejected", seconds, nanos)
		}
	})
}

func TestDates(t *testing.T) {
	t.Parallel()
	for days, want := range map[int32]bool{
		0: true, 19_783: true, timeunit.MinDay: true, timeunit.MaxDay: true,
		timeunit.MinDay - 1: false, timeunit.MaxDay + 1: false, math.MaxInt32: false, math.MinInt32: false,
	} {
		if timeunit.OfDay(days) != want {
			t.Errorf("day %d: want %v", days, want)
		}
	}
	if first := time.Unix(timeunit.MinDay*86_400, 0).UTC(); first.Year() != 1 || first.YearDay() != 1 {
		t.Errorf("the first date is %s", first)
	}
	if last := time.Unix(timeunit.MaxDay*86_400, 0).UTC(); last.Year() != 9999 || last.YearDay() != 365 {
		t.Errorf("the last date is %s", last)
	}
}
