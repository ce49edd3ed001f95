package fetch_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// If brokers freeze, requests without a limit of the caller fail: a member of a group gets an error
// and joins again, and other requests end. When the brokers continue, requests succeed.
func TestFrozenBrokers(t *testing.T) {
	t.Parallel()
	var own server.Cluster
	brokers := strings.Split(own.Brokers(t), ",")
	t.Cleanup(func() { _ = own.Stop() })
	p := fetchtest.New(t, brokers, "frozen")
	if err := p.CreateTopic(t.Context(), "topic", 2); err != nil {
		t.Fatal(err)
	}
	cfg := fetch.Config{Brokers: brokers, Topic: "topic", ClientID: "test", Logger: slog.New(slog.DiscardHandler),
		Stall: 5 * time.Second}
	s := newSink()
	member, err := fetch.Join(cfg, fetch.Group{Name: "g", Position: s.position})
	if err != nil {
		t.Fatal(err)
	}
	poll := func(until func() bool) error {
		for !until() {
			if _, err := member.Poll(context.Background(), 50*time.Millisecond); err != nil {
				return err
			}
			member.Yield()
		}
		return nil
	}
	if err := poll(func() bool { return len(member.Assigned()) == 2 }); err != nil {
		t.Fatal(err)
	}
	reader, err := fetch.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Describe(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := own.PauseNode(0); err != nil {
		t.Fatal(err)
	}
	described := make(chan error, 1)
	go func() {
		_, err := reader.Describe(context.Background())
		described <- err
	}()
	if err := poll(func() bool { return false }); err == nil {
		t.Error("Poll of the member returned no error")
	}
	if err := <-described; err == nil {
		t.Error("Describe succeeded with frozen brokers")
	}
	if err := own.ResumeNode(0); err != nil {
		t.Fatal(err)
	}
	member.Close()
	reader.Close()
	again, err := fetch.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	polltest.Until(t, "the brokers respond again", func() bool {
		_, err := again.Describe(t.Context())
		return err == nil
	})
}
