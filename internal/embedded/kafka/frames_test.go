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

// readerConn is a connection that is only read.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (readerConn) RemoteAddr() net.Addr         { return &net.TCPAddr{} }
func (readerConn) Close() error                 { return nil }

// framesOf returns the frames of bytes. They are closed, so that the end is not held back.
func framesOf(t interface{ Fatal(...any) }, r io.Reader) *frames {
	f := newFrames(readerConn{Reader: r}, slog.New(slog.DiscardHandler), nil)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

// Requests pass unchanged, however their bytes arrive and are read.
func TestFramesPassUnchanged(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var sent []byte
		for _, size := range rapid.SliceOf(rapid.OneOf(rapid.IntRange(0, 300),
			rapid.IntRange(bufferFrame-1, bufferFrame+300))).Draw(t, "sizes") {
			sent = binary.BigEndian.AppendUint32(sent, uint32(size))
			sent = append(sent, bytes.Repeat([]byte{byte(size)}, size)...)
		}
		var from io.Reader = bytes.NewReader(sent)
		if rapid.Bool().Draw(t, "byte by byte") {
			from = iotest.OneByteReader(from)
		}
		got, err := io.ReadAll(framesOf(t, from))
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(sent), err)
		}
	})
}

// Whatever bytes arrive, kfake never sees a request that is too long, or the length of a large one
// that has not arrived completely.
func FuzzFrames(f *testing.F) {
	frame := func(announced uint32, sent int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, announced), make([]byte, sent)...)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 3)
	f.Add(frame(maxFrame+1, 100), 1)
	f.Add(frame(maxFrame, 100), 100)
	f.Add(frame(bufferFrame+1, 100), 7)
	f.Add(frame(bufferFrame+1, bufferFrame+1), 4096)
	f.Add(append(frame(5, 5), frame(0xffffffff, 3)...), 2)
	f.Add(append(frame(8, 8)[:4], 0, 11, 0, 5, 0, 0, 0, 1), 8) // a JoinGroup
	f.Fuzz(func(t *testing.T, sent []byte, piece int) {
		conn := framesOf(t, &pieces{sent, max(1, piece)})
		for at := 0; ; {
			head := make([]byte, 4)
			n, err := io.ReadFull(conn, head)
			if !bytes.HasPrefix(sent[at:], head[:n]) {
				t.Fatalf("got %[2]x at %[1]d", at, head[:n])
			}
			if err != nil {
				return
			}
			at += len(head)
			size := int64(binary.BigEndian.Uint32(head))
			if size > maxFrame || size > bufferFrame && size > int64(len(sent)-at) {
				t.Fatalf("a request of %d bytes is announced, but only %d arrive", size, len(sent)-at)
			}
			body := make([]byte, size)
			n, err = io.ReadFull(conn, body)
			if !bytes.HasPrefix(sent[at:], body[:n]) {
				t.Fatalf("other bytes at %d", at)
			}
			if err != nil {
				return
			}
			at += n
		}
	})
}

// pieces returns at most the given number of bytes per read.
type pieces struct {
	left []byte
	most int
}

func (p *pieces) Read(to []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(to[:min(len(to), p.most)], p.left)
	p.left = p.left[n:]
	return n, nil
}

// Connections that announce the largest request and send nothing of it take no memory.
func TestAnnouncedLengthIsNotAllocated(t *testing.T) {
	b, err := Start(t.Context(), Config{DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		conn, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		// A response to this request shows that the broker reads what follows it.
		versions := []byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff}
		if _, err := conn.Write(append(versions, binary.BigEndian.AppendUint32(nil, maxFrame)...)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("%d MiB were allocated for 50 connections", grown>>20)
	}
}

// Bytes that are not a Kafka request close their connection and take no memory.
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
		"one too many":     binary.BigEndian.AppendUint32(nil, maxFrame+1),
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
			t.Errorf("%s: got a response of %d bytes, %v", name, n, err)
		} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection is still open", name)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if grown := allocated() - before; grown > 16<<20 {
		t.Errorf("%d MiB were allocated", grown>>20)
	}
}
