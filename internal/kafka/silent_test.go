package kafka_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// lines is a log that signals when it contains a text.
type lines struct {
	text string
	seen chan struct{}
	once sync.Once
}

func (l *lines) Write(p []byte) (int, error) {
	if strings.Contains(string(p), l.text) {
		l.once.Do(func() { close(l.seen) })
	}
	return len(p), nil
}

// A starting process waits for brokers that accept connections and do not answer, and logs that. A
// request of a running process fails.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	log := &lines{text: "still waiting", seen: make(chan struct{})}
	cfg := kafka.Config{Brokers: listener.Addr().String(), ClientID: "test",
		Logger: slog.New(slog.NewTextHandler(log, nil)), Stall: 300 * time.Millisecond}
	a, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	for name, ask := range map[string]func(context.Context, string) (map[int32]int64, error){
		"StartOffsets": a.StartOffsets, "EndOffsets": a.EndOffsets, "HighWatermarks": a.HighWatermarks,
	} {
		if _, err := ask(context.Background(), "topic"); !errors.Is(err, kafka.ErrStalled) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { started <- kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: "topic", Partitions: 1}) }()
	<-log.seen
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("EnsureTopics: error %v", err)
	}
}

// If all brokers freeze, callers do not hang. When they continue, requests succeed.
func TestFrozenBroker(t *testing.T) {
	t.Parallel()
	var own server.Cluster
	b := newBroker(kafka.Config{Brokers: own.Brokers(t), ClientID: "test", Logger: quiet, Stall: 3 * time.Second})
	t.Cleanup(func() { _ = own.Stop() })
	b.ensure(t, 1)
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if _, err := a.EndOffsets(t.Context(), b.topic); err != nil {
		t.Fatal(err)
	}
	if err := own.PauseNode(0); err != nil {
		t.Fatal(err)
	}
	if _, err := a.EndOffsets(context.Background(), b.topic); err == nil {
		t.Error("a frozen broker responds")
	}
	if err := kafka.ReadAll(context.Background(), b.Config, b.topic, nil, map[int32]int64{0: 1},
		func(kafka.Message) error { return nil }); !errors.Is(err, kafka.ErrStalled) {
		t.Errorf("ReadAll: error %v", err)
	}
	if err := own.ResumeNode(0); err != nil {
		t.Fatal(err)
	}
	if _, err := a.EndOffsets(t.Context(), b.topic); err != nil {
		t.Errorf("after it: %v", err)
	}
}
