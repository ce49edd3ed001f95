package kafka

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// TestLogs: the client's messages are logged without the form that librdkafka gives them, and what it
// does at every start is not a warning.
func TestLogs(t *testing.T) {
	for _, c := range []struct {
		event kafka.LogEvent
		want  string // empty: nothing at the default level
	}{
		{kafka.LogEvent{Name: "c#producer-1", Tag: "GETPID", Level: 4, Message: "[thrd:main]: Failed to acquire idempotence PID " +
			"from broker 127.0.0.1:9092/bootstrap: Local: Broker handle destroyed without termination: retrying"}, ""},
		{kafka.LogEvent{Name: "c#producer-1", Tag: "GETPID", Level: 4, Message: "[thrd:main]: Failed to acquire idempotence PID " +
			"from broker 127.0.0.1:9092/1: Broker: Coordinator not available: retrying"},
			`level=WARN msg="kafka: Failed to acquire idempotence PID from broker 127.0.0.1:9092/1: ` +
				`Broker: Coordinator not available: retrying" client=c#producer-1 thread=main tag=GETPID`},
		{kafka.LogEvent{Name: "c#consumer-1", Tag: "FAIL", Level: 3, Message: "[thrd:127.0.0.1:1/bootstrap]: Connect to ipv4#127.0.0.1:1 failed"},
			`level=WARN msg="kafka: Connect to ipv4#127.0.0.1:1 failed" client=c#consumer-1 thread=127.0.0.1:1/bootstrap tag=FAIL`},
		{kafka.LogEvent{Name: "c#consumer-1", Tag: "FATAL", Level: 2, Message: "out of memory"},
			`level=ERROR msg="kafka: out of memory" client=c#consumer-1 thread="" tag=FATAL`},
		{kafka.LogEvent{Name: "c#consumer-1", Tag: "X", Level: 5, Message: "[thrd:unfinished"},
			`level=INFO msg="kafka: [thrd:unfinished" client=c#consumer-1 thread="" tag=X`},
		{kafka.LogEvent{Name: "c#consumer-1", Tag: "X", Level: 7, Message: "[thrd:main]: detail"}, ""},
	} {
		var b bytes.Buffer
		l := newLogs(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}})))
		l.events <- c.event
		l.close()
		if got := strings.TrimSpace(b.String()); got != c.want {
			t.Errorf("%s: %s, want %s", c.event.Message, got, c.want)
		}
	}
}
