// Package stall bounds how long a connection may be silent. A server that hangs, or that
// disappeared without closing, keeps its connections open. A deadline for a whole call would have
// to be as long as the longest transfer. So a connection here may take any time as long as bytes
// move.
//
// Dialer returns a dial function for such connections.
package stall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStalled means that no byte has moved on a connection for too long.
var ErrStalled = errors.New("connection stalled")

// Dialer returns a dial function. A read or a write on its connections fails with ErrStalled if no
// byte has moved in either direction for stall. A pool that reads from an idle connection waits,
// too, so it must close idle connections sooner.
func Dialer(d *net.Dialer, stall time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newConn(c, stall), nil
	}
}

// conn adds deadlines of its own to those of its user.
type conn struct {
	net.Conn
	stall     time.Duration
	lastMoved atomic.Pointer[time.Time] // when a byte last moved
	silent    atomic.Bool               // one direction has failed for silence, and the user is closing the connection

	// mu is held while a deadline is set, so that the earlier one applies.
	mu          sync.Mutex
	read, write time.Time // deadlines of the user; zero means none
}

// SetDeadline implements net.Conn. Silence may end a call sooner.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = t
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return c.Conn.SetWriteDeadline(t)
}

// bound sets a deadline of from plus stall, unless the user's is earlier.
func (c *conn) bound(set func(time.Time) error, theirs *time.Time, from time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := from.Add(c.stall)
	if !theirs.IsZero() && theirs.Before(until) {
		until = *theirs
	}
	return set(until)
}

// expired reports whether the user's deadline has passed.
func (c *conn) expired(theirs *time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !theirs.IsZero() && !time.Now().Before(*theirs)
}

// newConn starts the clock of a connection.
func newConn(c net.Conn, stall time.Duration) *conn {
	watched := &conn{Conn: c, stall: stall}
	watched.touch()
	return watched
}

// touch records that a byte has moved.
func (c *conn) touch() { c.lastMoved.Store(new(time.Now())) }

// Read continues to wait while bytes are written, because the answer may come after a long request.
func (c *conn) Read(p []byte) (int, error) {
	for from := time.Now(); ; from = *c.lastMoved.Load() {
		if err := c.bound(c.Conn.SetReadDeadline, &c.read, from); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if n > 0 || err == nil {
			c.touch()
			return n, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || c.expired(&c.read) {
			return n, err
		}
		// Nothing was written while this read waited: the connection is silent.
		if !c.lastMoved.Load().After(from) {
			return n, c.silence(err)
		}
	}
}

// chunkSize is how many bytes are written under one deadline.
const chunkSize = 64 << 10

// Write writes in chunks, so that a long write does not count as silence.
func (c *conn) Write(p []byte) (written int, err error) {
	for more := true; more; more = len(p) > written {
		if err := c.bound(c.Conn.SetWriteDeadline, &c.write, time.Now()); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+chunkSize)])
		if written += n; n > 0 {
			c.touch()
		}
		if err != nil && (c.silent.Load() || errors.Is(err, os.ErrDeadlineExceeded)) && !c.expired(&c.write) {
			err = c.silence(err)
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// silence returns ErrStalled, and marks the connection for the other direction.
func (c *conn) silence(err error) error {
	c.silent.Store(true)
	return fmt.Errorf("%w: no bytes to or from %s for %v: %w", ErrStalled, c.RemoteAddr(), c.stall, err)
}
