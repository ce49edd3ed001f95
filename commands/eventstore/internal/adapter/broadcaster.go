package adapter

import "sync"

// Bell wakes everybody who listens. The zero Bell is ready.
type Broadcaster struct {
	mu   sync.Mutex
	next chan struct{} // nil while nobody listens
}

// Next returns a channel that the next Ring closes. Take it before you look whether there is
// something to wait for.
func (b *Broadcaster) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

// Ring wakes them.
func (b *Broadcaster) Broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}
