package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxFrame is the size of the largest accepted request, in bytes. Kafka's own limit is 100 MiB.
// Clients here send less than a hundredth of that.
const maxFrame = 32 << 20

// bufferFrame is the size from which a request is buffered here. kfake sees its length only after
// the whole request has arrived. So a connection that announces a large request and sends nothing
// takes no memory.
const bufferFrame = 1 << 20

// frames inspects the length at the beginning of each request. kfake allocates that much before it
// reads on, up to 4 GiB, and bytes that are not Kafka requests can have any value there. A
// connection that announces more than maxFrame is closed.
type frames struct {
	net.Conn
	log *slog.Logger

	// State of Read.
	head [4]byte // length of the next request; the first have bytes are read
	have int
	left int64  // bytes of the current request that are still to be read
	body []byte // rest of a large request that has arrived

	// start is the beginning of the current request: its kind, version and correlation id. The first
	// started bytes are known.
	start   [8]byte
	started int
	changes atomic.Bool // a request may have changed the list of topics
	changed func()      // called then, before a response is sent

	joining atomic.Pointer[join] // nil if every JoinGroup is answered
	closing sync.Once
	closed  chan struct{}
}

// join is a JoinGroup request that waits for other members.
type join struct {
	correlation [4]byte
	answered    chan struct{}
}

func newFrames(conn net.Conn, log *slog.Logger, changed func()) *frames {
	return &frames{Conn: conn, log: log, changed: changed, closed: make(chan struct{})}
}

// Write saves a change of the list of topics before the client gets the response.
func (f *frames) Write(p []byte) (int, error) {
	// The flag is never reset: such requests are rare, and update compares first.
	if f.changes.Load() {
		f.changed()
	}
	// kfake writes a response as a whole: its length, its correlation id, and the rest.
	if j := f.joining.Load(); j != nil && len(p) >= 8 && bytes.Equal(p[4:8], j.correlation[:]) {
		f.joining.Store(nil)
		close(j.answered)
	}
	return f.Conn.Write(p)
}

// Close implements net.Conn.
func (f *frames) Close() error {
	f.closing.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// kind records the kind of a request from its first bytes, and whether it can change topics.
func (f *frames) kind(p []byte) {
	if f.started == len(f.start) {
		return
	}
	f.started += copy(f.start[f.started:], p)
	if f.started < len(f.start) {
		return
	}
	switch kmsg.Key(binary.BigEndian.Uint16(f.start[:])) {
	case kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.CreatePartitions, kmsg.AlterConfigs, kmsg.IncrementalAlterConfigs:
		f.changes.Store(true)
	case kmsg.JoinGroup:
		f.joining.Store(&join{correlation: [4]byte(f.start[4:]), answered: make(chan struct{})})
	}
}

// Read returns the bytes of requests unchanged. If the client is gone while it joins a group, kfake
// learns that after it has answered. Otherwise it would never start the member's session timeout,
// and the partitions that the group assigns to the member would not be read any more.
func (f *frames) Read(p []byte) (int, error) {
	n, err := f.read(p)
	if j := f.joining.Load(); err != nil && j != nil {
		select {
		case <-j.answered:
		case <-f.closed:
		}
	}
	return n, err
}

// read has three states: in a buffered large request, in a request, and in the length before one.
func (f *frames) read(p []byte) (int, error) {
	// In a large request that was read completely before.
	if len(f.body) > 0 {
		n := copy(p, f.body)
		if f.body = f.body[n:]; len(f.body) == 0 {
			f.body = nil
		}
		return n, nil
	}
	// In a request that is passed on as it arrives.
	if f.left > 0 {
		n, err := f.Conn.Read(p[:min(int64(len(p)), f.left)])
		f.left -= int64(n)
		f.kind(p[:n])
		return n, err
	}
	// The length may arrive in pieces.
	n, err := f.Conn.Read(p[:min(len(p), len(f.head)-f.have)])
	f.have += copy(f.head[f.have:], p[:n])
	if f.have < len(f.head) {
		return n, err
	}
	// A new request begins.
	f.started = 0
	f.have, f.left = 0, int64(binary.BigEndian.Uint32(f.head[:]))
	if f.left > maxFrame {
		f.log.Warn("embedded kafka: closing a connection whose request is too large or is not Kafka's protocol",
			"bytes", f.left, "max", maxFrame, "from", f.RemoteAddr())
		return 0, fmt.Errorf("request of %d bytes exceeds the maximum of %d", f.left, maxFrame)
	}
	// Read a large request completely before kfake sees its length.
	if f.left > bufferFrame && err == nil {
		var body bytes.Buffer // grows as bytes arrive
		if _, err := io.CopyN(&body, f.Conn, f.left); err != nil {
			return 0, err
		}
		f.body, f.left = body.Bytes(), 0
		f.kind(f.body)
	}
	return n, err
}
