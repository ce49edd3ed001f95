package history

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// cutter is a proxy in front of PostgreSQL. Occasionally it cuts a connection when an answer is on
// its way, so that the server has done something that the client never hears of.
type cutter struct {
	conn     string // connection string through the proxy
	listener net.Listener
	server   string
	cuts     atomic.Int64
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]struct{} // nil after stop
}

const cutOneIn = 400 // answers per cut

func startCutter(t *testing.T, conn string) *cutter {
	t.Helper()
	dir, err := os.MkdirTemp("", "millrace-cut-") //nolint:usetesting // the path of a Unix socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var host, port, rest string
	if _, err := fmt.Sscanf(conn, "host=%s port=%s", &host, &port); err != nil {
		t.Fatalf("connection string %q: %v", conn, err)
	}
	_, rest, _ = strings.Cut(conn, " ")
	socket := ".s.PGSQL." + port
	c := &cutter{conn: "host=" + dir + " " + rest, server: filepath.Join(host, socket), open: map[net.Conn]struct{}{}}
	if c.listener, err = new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	c.wg.Go(c.accept)
	t.Cleanup(c.stop)
	return c
}

func (c *cutter) accept() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		server, err := new(net.Dialer).DialContext(context.Background(), "unix", c.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		if !c.keep(client, server) {
			return
		}
		c.wg.Go(func() {
			_, _ = io.Copy(server, client)
			c.cut(client, server)
		})
		c.wg.Go(func() {
			c.answers(client, server)
			c.cut(client, server)
		})
	}
}

// answers forwards the server's answers, until it is time to cut.
func (c *cutter) answers(client io.Writer, server io.Reader) {
	b := make([]byte, 32<<10)
	for {
		n, err := server.Read(b)
		if err != nil {
			return
		}
		if rand.IntN(cutOneIn) == 0 {
			c.cuts.Add(1)
			return
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

func (c *cutter) keep(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if c.open == nil {
			_ = conn.Close()
			continue
		}
		c.open[conn] = struct{}{}
	}
	return c.open != nil
}

func (c *cutter) cut(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
		delete(c.open, conn)
	}
}

// stop cuts all connections and accepts no more. It may be called more than once.
func (c *cutter) stop() {
	_ = c.listener.Close()
	c.mu.Lock()
	for conn := range c.open {
		_ = conn.Close()
	}
	c.open = nil
	c.mu.Unlock()
	c.wg.Wait()
}
