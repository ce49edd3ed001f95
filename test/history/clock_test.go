package history

import (
	"math"

	"golang.org/x/sys/unix"
)

// never is when an operation returns whose answer was lost.
const never = math.MaxInt64

// moment returns the machine's monotonic clock in nanoseconds. Unlike time.Now's it is the same in
// every process.
func moment() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // Linux always has it
	}
	return t.Nano()
}
