package streams

import (
	"sync/atomic"
	"time"
)

// burst is how much a pacer that was idle makes up for.
const burst = 100 * time.Millisecond

// pacer limits how many records per second the poll loop reads. Its zero value does not limit.
type pacer struct {
	perSecond atomic.Int64 // 0: no limit
	due       time.Time    // when the next record may be read; used by the poll loop only
}

// wait returns how long to wait before the next record, or 0.
func (p *pacer) wait(now time.Time) time.Duration {
	if p.perSecond.Load() == 0 {
		return 0
	}
	return max(0, p.due.Sub(now))
}

// passed counts a record that was read.
func (p *pacer) passed(now time.Time) {
	n := p.perSecond.Load()
	if n == 0 {
		return
	}
	if earliest := now.Add(-burst); p.due.Before(earliest) {
		p.due = earliest
	}
	p.due = p.due.Add(time.Second / time.Duration(n))
}

// SetRate limits how many records per second the Runtime reads. 0 means no limit. It may be called at
// any time.
func (r *Runtime) SetRate(perSecond int) { r.pace.perSecond.Store(int64(max(0, perSecond))) }

// awaitPace waits for the rate, and reports whether it had to. It waits for pollFor at most, so that
// repairs do not wait longer.
func (r *Runtime) awaitPace(now time.Time, done <-chan struct{}) (paused bool) {
	wait := r.pace.wait(now)
	if wait == 0 {
		return false
	}
	pause := time.NewTimer(min(wait, pollFor))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-done:
	}
	return true
}
