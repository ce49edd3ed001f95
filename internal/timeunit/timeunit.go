// Package timeunit converts times between units and checks every conversion. The arithmetic
// overflows silently: microseconds read as milliseconds become a date in 2047, not an error.
//
// A time is in the years 1 to 9999, UTC, as in Protobuf, RFC 3339 and SQL. Later times can be
// stored, but most readers fail or show another time. The lake's unit is microseconds. Smaller
// fractions are cut off, towards the past.
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

// First and last second of a time, and the corresponding microseconds and days, counted from 1970.
const (
	MinSecond = -62_135_596_800
	MaxSecond = 253_402_300_799
	MinMicro  = MinSecond * microsPerSecond
	MaxMicro  = MaxSecond*microsPerSecond + microsPerSecond - 1
	MinDay    = MinSecond / secondsPerDay
	MaxDay    = MaxSecond / secondsPerDay
)

// MicrosPerDay is the number of microseconds in a day without a leap second.
const MicrosPerDay = secondsPerDay * microsPerSecond

// OfSeconds converts seconds and nanoseconds since 1970 to microseconds. ok is false if they are
// out of range.
func OfSeconds(seconds int64, nanos int32) (micros int64, ok bool) {
	if seconds < MinSecond || seconds > MaxSecond || nanos < 0 || nanos >= nanosPerSecond {
		return 0, false
	}
	return seconds*microsPerSecond + int64(nanos)/nanosPerMicro, true
}

// OfMillis converts milliseconds since 1970 to microseconds. ok is false if they are out of range.
func OfMillis(millis int64) (micros int64, ok bool) {
	if millis < MinMicro/microsPerMilli || millis > MaxMicro/microsPerMilli {
		return 0, false
	}
	return millis * microsPerMilli, true
}

// OfMicros returns micros. ok is false if they are out of range.
func OfMicros(micros int64) (_ int64, ok bool) {
	if micros < MinMicro || micros > MaxMicro {
		return 0, false
	}
	return micros, true
}

// Of converts a time to microseconds since 1970. ok is false if it is out of range.
func Of(t time.Time) (micros int64, ok bool) { return OfSeconds(t.Unix(), int32(t.Nanosecond())) }

// OfDay reports whether days since 1970 are in the range of dates.
func OfDay(days int32) bool { return days >= MinDay && days <= MaxDay }

// Time returns the time of milliseconds since 1970, or the zero Time if they are out of range.
func Time(millis int64) time.Time {
	if _, ok := OfMillis(millis); !ok {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// Nanoseconds converts a duration of seconds and nanoseconds, which must have the same sign. ok is
// false if they do not, or if the result overflows.
func Nanoseconds(seconds int64, nanos int32) (_ int64, ok bool) {
	if nanos <= -nanosPerSecond || nanos >= nanosPerSecond || seconds > 0 && nanos < 0 || seconds < 0 && nanos > 0 {
		return 0, false
	}
	// Calculate with unsigned numbers, in which -2^63 has a magnitude, too.
	high, low := bits.Mul64(uint64(max(seconds, -seconds)), nanosPerSecond)
	low, carry := bits.Add64(low, uint64(max(nanos, -nanos)), 0)
	if high+carry > 0 || low > math.MaxInt64 {
		return 0, false
	}
	return seconds*nanosPerSecond + int64(nanos), true
}
