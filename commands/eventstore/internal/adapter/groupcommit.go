package adapter

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/millrace/millrace/commands/eventstore"
)

// The queue holds a second group while one is being stored; beyond that callers wait in Append.
const (
	queued   = 1024
	maxGroup = 512      // batches in one transaction
	maxBytes = 16 << 20 // of data in one transaction, and one batch more
)

// Call is an Append on its way through the writer.
type Call struct {
	Batch eventstore.Batch

	owner    atomic.Int32
	settled  chan struct{} // closed when the two below are set
	appended eventstore.Appended
	err      error
}

// A call belongs to the queue until either the writer takes it up or its caller gives up.
const (
	inQueue int32 = iota
	takenUp
	givenUp
)

// Settle tells the caller how it ended.
func (c *Call) Settle(a eventstore.Appended, err error) {
	c.appended, c.err = a, err
	close(c.settled)
}

func (c *Call) size() (n int) {
	for _, s := range c.Batch.Streams {
		for i := range s.Events {
			n += len(s.Events[i].Data)
		}
	}
	for _, s := range c.Batch.Snapshots {
		n += len(s.State)
	}
	return n
}

// Writer gathers concurrent appends into groups, so that one transaction, hence one sync of the
// disk, carries many.
type Writer struct {
	queue   chan *Call
	stopped chan struct{}
}

// StartWriter starts the one goroutine that stores. It hands each group to store, which settles
// every call or returns it to be the head of the next group.
func StartWriter(store func(group []*Call) (again []*Call)) *Writer {
	w := &Writer{queue: make(chan *Call, queued), stopped: make(chan struct{})}
	go w.run(store)
	return w
}

// Append queues a batch and waits for its end. If ctx ends first, Append returns its error at once:
// a batch that still was in the queue is not stored; one that was taken up may yet be.
func (w *Writer) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := b.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, fmt.Errorf("append, not stored: %w", err)
	}
	c := &Call{Batch: b, settled: make(chan struct{})}
	select {
	case w.queue <- c:
	case <-ctx.Done():
		return eventstore.Appended{}, fmt.Errorf("append, not stored: wait for room in the queue: %w", ctx.Err())
	}
	select {
	case <-c.settled:
		return c.appended, c.err
	case <-ctx.Done():
		if c.owner.CompareAndSwap(inQueue, givenUp) {
			return eventstore.Appended{}, fmt.Errorf("append, not stored: wait for the writer: %w", ctx.Err())
		}
		return eventstore.Appended{}, fmt.Errorf("append, may be stored (its idempotency key tells): %w", ctx.Err())
	}
}

// Queued returns how many calls wait to be taken up.
func (w *Writer) Queued() int { return len(w.queue) }

// Stop ends the goroutine after what is queued. No Append may be under way or follow.
func (w *Writer) Stop() {
	close(w.queue)
	<-w.stopped
}

func (w *Writer) run(store func([]*Call) []*Call) {
	defer close(w.stopped)
	var group []*Call
	for open := true; open || len(group) > 0; {
		if group, open = w.gather(group, open); len(group) > 0 {
			group = store(group)
		}
	}
}

// gather adds to the group what waits in the queue, and waits for a first call where it would be
// empty.
func (w *Writer) gather(group []*Call, open bool) ([]*Call, bool) {
	size := 0
	for _, c := range group {
		size += c.size()
	}
	for open && len(group) < maxGroup && size < maxBytes {
		var c *Call
		if len(group) == 0 {
			c, open = <-w.queue
		} else {
			select {
			case c, open = <-w.queue:
			default:
				return group, true
			}
		}
		if c != nil && c.owner.CompareAndSwap(inQueue, takenUp) {
			group = append(group, c)
			size += c.size()
		}
	}
	return group, open
}
