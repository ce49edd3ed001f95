package kafka_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
)

// smallDisk mounts a file system of a few megabytes.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file until the disk is full. free removes it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// A broker that starts on a full disk logs that and waits. When there is room, it has every record.
func TestStartOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	data := filepath.Join(dir, "kafka")
	c := startChild(t, data)
	cfg := kafka.Config{Brokers: c.addr}
	if err := kafka.EnsureTopics(t.Context(), cfg, events); err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	const records = 100
	for range records {
		if err := p.Produce(t.Context(),
			kafka.Record{Topic: events.Name, Partition: 0, Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	free := fill(t, dir)
	c.kill()

	var logged lockedBuffer
	started := make(chan *embedded.Broker, 1)
	go func() {
		b, err := embedded.Start(t.Context(),
			embedded.Config{DataDir: data, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Error(err)
		}
		started <- b
	}()
	polltest.Until(t, "the broker logs that it waits for space",
		func() bool { return bytes.Contains(logged.Bytes(), []byte("disk is full")) })
	free()
	b := <-started
	if b == nil {
		return
	}
	defer b.Close() //nolint:errcheck // the records are what counts
	got := 0
	err = kafka.ReadAll(t.Context(), kafka.Config{Brokers: b.Addr()}, events.Name, nil, map[int32]int64{0: records},
		func(kafka.Message) error {
			got++
			return nil
		})
	if err != nil || got != records {
		t.Errorf("read %d of %d records: %v", got, records, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}
