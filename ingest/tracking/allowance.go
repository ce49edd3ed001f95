package tracking

import (
	"sync"
	"time"
)

// burst is how many seconds of its rate a source may send at once. It may always send a batch of the
// largest size.
const burst = 10

// allowance is how many events a source may send now. It grows with time.
type allowance struct {
	rate, most float64 // events per second; events at most

	mu   sync.Mutex
	left float64
	at   time.Time // when left was computed
}

// newAllowance returns the allowance of a rate in events per second. It is nil for 0, which means no limit.
func newAllowance(rate int) *allowance {
	if rate == 0 {
		return nil
	}
	most := float64(max(burst*rate, maxEvents))
	return &allowance{rate: float64(rate), most: most, left: most}
}

// take reports whether n events may be sent, which then count. Events that are refused do not count.
func (a *allowance) take(n int, now time.Time) bool {
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if passed := now.Sub(a.at); passed > 0 { // the first one is from the zero time, and fills it
		a.left, a.at = min(a.most, a.left+passed.Seconds()*a.rate), now
	}
	if a.left < float64(n) {
		return false
	}
	a.left -= float64(n)
	return true
}
