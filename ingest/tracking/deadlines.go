package tracking

import (
	"context"
	"sync"
	"time"
)

// shareFor is the time in which the writes that begin share a deadline, and so one timer.
const shareFor = 100 * time.Millisecond

// deadlines has the context of the writes that begin now. It is safe for concurrent use.
type deadlines struct {
	mu   sync.Mutex
	ctx  context.Context // of many requests
	made time.Time
}

// context returns a context that ends writeTimeout after now, or shareFor earlier at most. It does not end
// with a request: a client that goes away will send its events again, so their write continues.
func (d *deadlines) context(now time.Time) context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil || now.Sub(d.made) >= shareFor {
		ctx, cancel := context.WithDeadline(context.Background(), now.Add(writeTimeout))
		context.AfterFunc(ctx, cancel) // nothing ends it earlier
		d.ctx, d.made = ctx, now
	}
	return d.ctx
}
