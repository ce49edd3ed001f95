package e2e

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// TestLogAndStoreDiverge changes the log and the event store behind the system's back. In every
// case, the system must either recover with nothing lost or duplicated, or stop and name a command
// that repairs it.
func TestLogAndStoreDiverge(t *testing.T) {
	t.Parallel()
	env := servers.env(t)
	brokers := servers.all.Kafka.Brokers(t)
	s := upOn(t, env, t.TempDir(), "127.0.0.1:0")
	s.ready()
	place := func(n int) (last string) {
		t.Helper()
		for range n {
			last = uuid.NewString()
			s.place(last)
		}
		return last
	}
	restart := func() {
		t.Helper()
		s = upOn(t, env, s.data, "127.0.0.1:0")
		s.ready()
	}
	place(20)
	want := s.verified()["store order events"]

	t.Run("the topic is widened", func(t *testing.T) {
		s.stop()
		config := kafka.Config{Brokers: brokers, ClientID: "e2e"}
		admin, err := kafka.NewAdmin(config)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		topic, err := admin.Topic(t.Context(), event.Order.Topic)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.AddPartitions(t.Context(), brokers, event.Order.Topic, int(topic.Partitions)*2); err != nil {
			t.Fatal(err)
		}
		restart()
		for range 10 {
			id := place(1)
			if order := s.order(id, s.confirm(id)); order.Version != "2" {
				t.Errorf("a query with a token shows version %s, want 2", order.Version)
			}
		}
		if got := s.verified()["topic "+event.Order.Topic+" events"]; got == want {
			t.Errorf("the topic still has %s events", got)
		}
	})
	t.Run("the widened topic is rebuilt", func(t *testing.T) {
		before := s.verified()
		s.stop()
		repair(t, env, s.data, "millrace rebuild --service order")
		restart()
		if got := s.verified(); !equalCounts(got, before) {
			t.Errorf("rebuilt: %v, before: %v", got, before)
		}
	})
	t.Run("the topic is deleted and created again", func(t *testing.T) {
		before := s.verified()
		s.stop()
		if err := server.Delete(t.Context(), brokers, event.Order.Topic); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the topic is created again", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			return kafka.EnsureTopics(ctx, kafka.Config{Brokers: brokers},
				relay.Topics([]event.Aggregate{event.Order}, 4)...) == nil
		})
		repair(t, env, s.data, failsToStart(t, env, s.data))
		restart()
		if got := s.verified(); !equalCounts(got, before) {
			t.Errorf("rebuilt: %v, before: %v", got, before)
		}
	})
	t.Run("the store is restored from a backup while the system runs", func(t *testing.T) {
		restore, err := servers.all.Postgres.Backup()
		if err != nil {
			t.Fatal(err)
		}
		s.ready()
		before := s.verified()
		place(5)
		s.verified()
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		s.stopsWithRemedy()
		repair(t, env, s.data, failsToStart(t, env, s.data))
		restart()
		if got := s.verified(); !equalCounts(got, before) {
			t.Errorf("rebuilt: %v, at the backup: %v", got, before)
		}
		place(5)
		s.verified()
	})
	s.stop()
}

var remedyCommand = regexp.MustCompile("`(millrace rebuild --service [a-z]+)`")

// stopsWithRemedy waits until the system has stopped by itself, and returns the command that it
// recommends.
func (s *system) stopsWithRemedy() string {
	s.t.Helper()
	select {
	case err := <-s.ended:
		if err == nil {
			s.t.Fatalf("the system exited without an error\n%s", s.output)
		}
	case <-time.After(startTimeout):
		s.t.Fatalf("the system still runs\n%s", s.output)
	}
	advised := remedyCommand.FindStringSubmatch(s.output.String())
	if advised == nil {
		s.t.Fatalf("the error names no remedy\n%s", s.output)
	}
	return advised[1]
}

// failsToStart starts a system that ends by itself, before or after it serves. It returns the
// command that the system recommends.
func failsToStart(t *testing.T, env []string, data string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "up", "--data", data, "--addr", "127.0.0.1:0", "--admin-addr",
		"127.0.0.1:0", "--tracking-addr", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	advised := remedyCommand.FindStringSubmatch(string(out))
	if err == nil || ctx.Err() != nil || advised == nil {
		t.Fatalf("up: %v, want an error with a remedy\n%s", err, out)
	}
	return advised[1]
}

func repair(t *testing.T, env []string, data, command string) {
	t.Helper()
	args := append(strings.Fields(command)[1:], "--yes", "--data", data)
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}
