// Package stall bounds how long a connection may be silent. A server that hangs, or that
// disappeared without closing, keeps its connections open. A deadline for a whole call would have
// to be as long as the longest transfer. So a connection here may take any time as long as bytes
// move.
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

// ErrSilent says that a connection has moved no byte for too long.
var ErrSilent = errors.New("the server is silent")

// Dialer makes connections that fail with ErrSilent once no byte was moved in either direction for
// so long while something waits for it. That something may be a pool which keeps an idle
// connection: let it close them sooner.
func Dialer(d *net.Dialer, stall time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newConn(c, stall), nil
	}
}

type conn struct {
	net.Conn
	stall time.Duration
	moved atomic.Pointer[time.Time] // when a byte was moved last
	quiet atomic.Bool               // one side has failed for it, and whoever has the connection closes it

	mu          sync.Mutex // held while a deadline is set, so that the earlier one holds
	read, write time.Time  // deadlines of whoever uses the connection; zero: none
}

// SetDeadline implements net.Conn: silence may end a call sooner.
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

// bound sets a deadline, unless the one of whoever uses the connection is sooner.
func (c *conn) bound(set func(time.Time) error, theirs *time.Time, from time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := from.Add(c.stall)
	if !theirs.IsZero() && theirs.Before(until) {
		until = *theirs
	}
	return set(until)
}

// passed reports whether the deadline of whoever uses the connection has.
func (c *conn) passed(theirs *time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !theirs.IsZero() && !time.Now().Before(*theirs)
}

func newConn(c net.Conn, stall time.Duration) *conn {
	moving := &conn{Conn: c, stall: stall}
	moving.move()
	return moving
}

func (c *conn) move() { c.moved.Store(new(time.Now())) }

// Read waits on while bytes are written: an answer may come after a long request.
func (c *conn) Read(p []byte) (int, error) {
	for from := time.Now(); ; from = *c.moved.Load() {
		if err := c.bound(c.Conn.SetReadDeadline, &c.read, from); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if n > 0 || err == nil {
			c.move()
			return n, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || c.passed(&c.read) {
			return n, err
		}
		if !c.moved.Load().After(from) {
			return n, c.stalled(err)
		}
	}
}

// piece is written under one deadline.
const piece = 64 << 10

func (c *conn) Write(p []byte) (written int, err error) {
	for more := true; more; more = len(p) > written {
		if err := c.bound(c.Conn.SetWriteDeadline, &c.write, time.Now()); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+piece)])
		if written += n; n > 0 {
			c.move()
		}
		if err != nil && (c.quiet.Load() || errors.Is(err, os.ErrDeadlineExceeded)) && !c.passed(&c.write) {
			err = c.stalled(err)
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (c *conn) stalled(err error) error {
	c.quiet.Store(true)
	return fmt.Errorf("%w: no byte to or from %s for %v: %w", ErrSilent, c.RemoteAddr(), c.stall, err)
}
