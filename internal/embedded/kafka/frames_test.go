package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

// readerConn is a connection of which only the reading matters.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (readerConn) RemoteAddr() net.Addr         { return &net.TCPAddr{} }

// Requests come through as they are, however the bytes arrive and are asked for.
func TestFramesComeThrough(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var sent []byte
		for _, size := range rapid.SliceOf(rapid.IntRange(0, 300)).Draw(t, "sizes") {
			sent = binary.BigEndian.AppendUint32(sent, uint32(size))
			sent = append(sent, bytes.Repeat([]byte{byte(size)}, size)...)
		}
		var from io.Reader = bytes.NewReader(sent)
		if rapid.Bool().Draw(t, "byte by byte") {
			from = iotest.OneByteReader(from)
		}
		got, err := io.ReadAll(&frames{Conn: readerConn{Reader: from}, log: slog.New(slog.DiscardHandler)})
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(sent), err)
		}
	})
}

// What is no request of Kafka's costs its connection, and no memory.
func TestOversizedFrameIsRefused(t *testing.T) {
	b, err := Start(t.Context(), Config{DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := allocated()
	for name, head := range map[string][]byte{
		"the largest":      {0xff, 0xff, 0xff, 0xff},
		"negative":         {0x80, 0, 0, 0},
		"one too many":     binary.BigEndian.AppendUint32(nil, largestFrame+1),
		"HTTP":             []byte("GET / HTTP/1.1\r\n\r\n"),
		"TLS":              {0x16, 0x03, 0x01, 0x02, 0x00, 0x01},
		"SSH":              []byte("SSH-2.0-OpenSSH_9.2\r\n"),
		"PostgreSQL's SSL": {0x7f, 0, 0, 8, 4, 210, 22, 47},
	} {
		conn, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(head); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: %d bytes are answered, %v", name, n, err)
		} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection stays open", name)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if grown := allocated() - before; grown > 16<<20 {
		t.Errorf("%d MiB were allocated", grown>>20)
	}
}
