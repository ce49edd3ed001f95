package history

import (
	"math"

	"golang.org/x/sys/unix"
)

// never is the return time of an operation whose answer was lost.
const never = math.MaxInt64

// moment returns the machine's monotonic clock in nanoseconds. Unlike that of time.Now, it is the
// same in every process.
func moment() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // Linux always has this clock
	}
	return t.Nano()
}
