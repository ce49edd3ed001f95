package adapter

import "sync"

// Broadcaster wakes all waiting goroutines. The zero value is ready to use.
type Broadcaster struct {
	mu   sync.Mutex
	next chan struct{} // nil while nobody listens
}

// Next returns a channel that the next Broadcast closes. Take it before you look whether there is
// something to wait for.
func (b *Broadcaster) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

// Broadcast wakes all goroutines that wait on a channel of Next.
func (b *Broadcaster) Broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}
