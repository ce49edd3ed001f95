package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// Limits bound the connections of a listener. Each listener has its own limits, so a full one
// leaves room in the others.
type Limits struct {
	Connections int // in total
	PerAddress  int // from one address
}

// conns tracks the open connections of a listener. At the limit, the connection that has been idle
// for longest is closed for a new one. A new connection is refused only if all are busy.
type conns struct {
	limits Limits

	// mu protects the fields below.
	mu      sync.Mutex
	open    map[*conn]struct{}
	from    map[string]int // number of open connections, by address
	idle    *list.List     // of *conn, the longest idle first
	refused int
	evicted int
}

// conn is a connection of the listener.
type conn struct {
	net.Conn
	all     *conns
	address string
	idle    *list.Element // its element in conns.idle; nil while it is busy
	once    sync.Once     // for Close, which net/http and conns both call
	err     error         // of the first Close
}

// newConns returns a tracker without connections.
func newConns(l Limits) *conns {
	return &conns{limits: l, open: map[*conn]struct{}{}, from: map[string]int{}, idle: list.New()}
}

// listener accepts connections within the limits.
type listener struct {
	net.Listener
	conns *conns
}

// Accept returns the next connection that is within the limits. It closes others.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted := l.conns.admit(c); admitted != nil {
			return admitted, nil
		}
		_ = c.Close() // refused, so its error has no receiver
	}
}

// admit registers a connection. It returns nil if there is no room.
func (s *conns) admit(c net.Conn) net.Conn {
	address, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		address = c.RemoteAddr().String()
	}
	// Close without the lock, because Close takes it.
	victims, ok := s.makeRoom(address)
	for _, v := range victims {
		_ = v.Close() // it is idle, so its error has no receiver
	}
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	admitted := &conn{Conn: c, all: s, address: address}
	s.open[admitted] = struct{}{}
	s.from[address]++
	// A new connection is idle until its first request has arrived.
	admitted.idle = s.idle.PushBack(admitted)
	return admitted
}

// makeRoom returns the connections to close so that one more from the address can be opened. Only
// one goroutine calls Accept, so there is no race for the room.
func (s *conns) makeRoom(address string) (victims []*conn, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The address has used its share: only one of its own connections may be closed for it.
	if s.from[address] >= s.limits.PerAddress {
		v := s.longestIdle(func(c *conn) bool { return c.address == address })
		if v == nil {
			s.refused++
			return nil, false
		}
		s.evicted++
		return []*conn{v}, true
	}
	if len(s.open) >= s.limits.Connections {
		v := s.longestIdle(func(*conn) bool { return true })
		if v == nil {
			s.refused++
			return nil, false
		}
		s.evicted++
		return []*conn{v}, true
	}
	return nil, true
}

// longestIdle returns the connection that has been idle for longest, or nil.
func (s *conns) longestIdle(fits func(*conn) bool) *conn {
	for e := s.idle.Front(); e != nil; e = e.Next() {
		if c, ok := e.Value.(*conn); ok && fits(c) {
			return c
		}
	}
	return nil
}

// changed is called when a connection's state changes. A connection with an incomplete request
// header counts as idle: net/http makes it active when it has read the header.
func (s *conns) changed(nc net.Conn, state http.ConnState) {
	if over, ok := nc.(interface{ NetConn() net.Conn }); ok { // TLS
		nc = over.NetConn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, _ := nc.(*conn)
	// Close has unregistered it before net/http reports that it is closed.
	if _, ok := s.open[c]; !ok {
		return
	}
	switch state {
	case http.StateActive, http.StateHijacked: // busy: it must not be evicted
		if c.idle != nil {
			s.idle.Remove(c.idle)
			c.idle = nil
		}
	case http.StateIdle:
		if c.idle == nil {
			c.idle = s.idle.PushBack(c)
		}
	case http.StateNew, http.StateClosed:
	}
}

// counts returns the numbers for metrics.
func (s *conns) counts() (open, refused, evicted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open), s.refused, s.evicted
}

// Close closes the connection and unregisters it.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		s := c.all
		s.mu.Lock()
		defer s.mu.Unlock()
		// Unregister only after closing, so that the descriptor is free when its place is.
		delete(s.open, c)
		if s.from[c.address]--; s.from[c.address] == 0 {
			delete(s.from, c.address)
		}
		if c.idle != nil {
			s.idle.Remove(c.idle)
			c.idle = nil
		}
	})
	return c.err
}
