package adapter

import "sync"

// Broadcaster wakes all waiting goroutines. The zero value is ready to use.
//
// A waiter takes a channel with Next, then checks its condition, and then waits on the channel. In
// this order it cannot miss a Broadcast.
type Broadcaster struct {
	mu   sync.Mutex
	next chan struct{} // nil while there is no waiter
}

// Next returns a channel that the next Broadcast closes. Call it before checking the condition.
func (b *Broadcaster) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

// Broadcast wakes all goroutines that wait on a channel from Next.
func (b *Broadcaster) Broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}
