// Package timeunit converts times between the units in which systems exchange them, and checks
// every conversion. It exists because the arithmetic wraps around without a word: microseconds read
// as milliseconds become a date in 2047, not an error.
//
// A time is one of the years 1 to 9999, UTC, as Protobuf, RFC 3339 and SQL have it: what is beyond
// can be stored, but most readers of it fail or show another time. Microseconds are the unit of the
// lake; what is below them is cut off, towards the past.
package timeunit

import (
	"math"
	"math/bits"
	"time"
)

const (
	nanosPerMicro   = 1_000
	microsPerMilli  = 1_000
	microsPerSecond = 1_000_000
	nanosPerSecond  = 1_000_000_000
	secondsPerDay   = 86_400
)

// The first and the last second of a time, and the days and microseconds that go with them, counted
// from 1970.
const (
	MinSecond = -62_135_596_800
	MaxSecond = 253_402_300_799
	MinMicro  = MinSecond * microsPerSecond
	MaxMicro  = MaxSecond*microsPerSecond + microsPerSecond - 1
	MinDay    = MinSecond / secondsPerDay
	MaxDay    = MaxSecond / secondsPerDay
)

// MicrosPerDay is how many microseconds a day without a leap second has.
const MicrosPerDay = secondsPerDay * microsPerSecond

// OfSeconds returns the time of so many seconds and nanoseconds since 1970, in microseconds.
func OfSeconds(seconds int64, nanos int32) (micros int64, ok bool) {
	if seconds < MinSecond || seconds > MaxSecond || nanos < 0 || nanos >= nanosPerSecond {
		return 0, false
	}
	return seconds*microsPerSecond + int64(nanos)/nanosPerMicro, true
}

// OfMillis returns the time of so many milliseconds since 1970, in microseconds.
func OfMillis(millis int64) (micros int64, ok bool) {
	if millis < MinMicro/microsPerMilli || millis > MaxMicro/microsPerMilli {
		return 0, false
	}
	return millis * microsPerMilli, true
}

// OfMicros reports whether so many microseconds since 1970 are a time.
func OfMicros(micros int64) (_ int64, ok bool) {
	if micros < MinMicro || micros > MaxMicro {
		return 0, false
	}
	return micros, true
}

// Of returns a time in microseconds since 1970.
func Of(t time.Time) (micros int64, ok bool) { return OfSeconds(t.Unix(), int32(t.Nanosecond())) }

// OfDay reports whether so many days since 1970 are a date.
func OfDay(days int32) bool { return days >= MinDay && days <= MaxDay }

// Time returns the time of so many milliseconds since 1970; the zero Time where they are none.
func Time(millis int64) time.Time {
	if _, ok := OfMillis(millis); !ok {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// Nanoseconds are those of a duration, whose seconds and nanoseconds have the same sign.
func Nanoseconds(seconds int64, nanos int32) (_ int64, ok bool) {
	if nanos <= -nanosPerSecond || nanos >= nanosPerSecond || seconds > 0 && nanos < 0 || seconds < 0 && nanos > 0 {
		return 0, false
	}
	// Unsigned, -2^63 has a magnitude too.
	high, low := bits.Mul64(uint64(max(seconds, -seconds)), nanosPerSecond)
	low, carry := bits.Add64(low, uint64(max(nanos, -nanos)), 0)
	if high+carry > 0 || low > math.MaxInt64 {
		return 0, false
	}
	return seconds*nanosPerSecond + int64(nanos), true
}
