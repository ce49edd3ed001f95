// Package kafka is the Kafka client for work that is done per event or in a transaction:
//
//   - TransactionalProducer publishes events and checkpoints for the relay.
//   - Producer writes single records.
//   - Consumer reads topics for views, as a member of a consumer group.
//   - ReadAll reads a range of a topic.
//   - Admin creates and describes topics. Its method Settings checks what the system relies on in
//     their configuration.
//
// It is the only package that imports confluent-kafka-go. Package fetch has another client, which
// reads whole batches into columns.
//
// The package hides three properties of librdkafka. Its many errors are mapped to the few that
// callers distinguish (errors.go). Its log goes to slog. And its blocking calls, which do not
// observe a context, are split into short ones, so that they end with their context.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/kafka/security"
)

// Config contains the addresses of the brokers and the properties of a client.
type Config struct {
	// Brokers is "host:port,host:port".
	Brokers string
	// ClientID names this client in the brokers' logs and metrics.
	ClientID string
	// Security is how to connect and to authenticate. Opening a client fails if it is incomplete.
	Security security.Config
	// Replicas is the number of replicas of topics that EnsureTopics creates. 0 means the brokers'
	// default.
	Replicas int
	// Stall is how long ReadAll waits for progress before it fails with ErrStalled. 0 means 20 s.
	Stall time.Duration
	// Extra are further librdkafka properties, for tuning. Properties that correctness depends on,
	// such as the isolation level, are rejected.
	Extra map[string]string
	// Logger is the logger. Nil means slog.Default().
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

// configMap returns the properties of a client. Extra may override tuning, but not must, which
// correctness depends on.
func (c Config) configMap(l *logs, tuning, must kafka.ConfigMap) (*kafka.ConfigMap, error) {
	if c.Brokers == "" {
		return nil, errors.New("kafka: no brokers: set Brokers to host:port")
	}
	m := kafka.ConfigMap{
		"socket.nagle.disable":     true,
		"reconnect.backoff.ms":     20,
		"reconnect.backoff.max.ms": 1000,
		"enable.metrics.push":      false,
	}
	if err := setSecurity(m, c.Security); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	maps.Copy(m, tuning)
	for k, v := range c.Extra {
		if _, reserved := must[k]; reserved {
			return nil, fmt.Errorf("kafka: property %s cannot be set: correctness depends on its value", k)
		}
		m[k] = v
	}
	// must comes last, so nothing above can override it.
	maps.Copy(m, must)
	m["bootstrap.servers"] = c.Brokers
	if c.ClientID != "" {
		m["client.id"] = c.ClientID
	}
	m["go.logs.channel.enable"] = true
	m["go.logs.channel"] = l.events
	return &m, nil
}

// setSecurity sets the librdkafka properties for a security configuration.
func setSecurity(m kafka.ConfigMap, s security.Config) error {
	if err := s.Validate(); err != nil {
		return err
	}
	// Read the files only to return a good error: librdkafka's names neither the setting nor the
	// problem.
	if _, err := s.ClientTLS(); err != nil {
		return err
	}
	protocol := "PLAINTEXT"
	switch {
	case s.TLS && s.Mechanism != "":
		protocol = "SASL_SSL"
	case s.TLS:
		protocol = "SSL"
	case s.Mechanism != "":
		protocol = "SASL_PLAINTEXT"
	}
	m["security.protocol"] = protocol
	for property, value := range map[string]string{
		"ssl.ca.location": s.CAFile, "ssl.certificate.location": s.CertFile, "ssl.key.location": s.KeyFile,
		"sasl.mechanism": s.Mechanism, "sasl.username": s.Username, "sasl.password": s.Password,
	} {
		if value != "" {
			m[property] = value
		}
	}
	return nil
}

// logs forwards a client's log to slog. Close it after the client, which must not send on a closed
// channel.
type logs struct {
	events chan kafka.LogEvent
	done   sync.WaitGroup
}

// newLogs starts forwarding to a logger.
func newLogs(to *slog.Logger) *logs {
	l := &logs{events: make(chan kafka.LogEvent, 64)}
	l.done.Go(func() {
		for e := range l.events {
			thread, text := splitThread(e.Message)
			to.Log(context.Background(), logLevel(e), "kafka: "+text, "client", e.Name, "thread", thread, "tag", e.Tag)
		}
	})
	return l
}

// splitThread returns the name of librdkafka's thread, with which its messages begin, and the rest.
func splitThread(message string) (thread, text string) {
	if rest, ok := strings.CutPrefix(message, "[thrd:"); ok {
		if thread, text, ok = strings.Cut(rest, "]: "); ok {
			return thread, text
		}
	}
	return "", message
}

// close returns when all messages are forwarded.
func (l *logs) close() {
	close(l.events)
	l.done.Wait()
}

// replacedHandle is the text of an error that no caller has to know. At start, a client asks one of the
// configured addresses first, and drops that handle when it has learned the brokers' ids. It sends the
// requests that this cuts off again.
const replacedHandle = "Broker handle destroyed without termination: retrying"

// logLevel maps a syslog level. To librdkafka, a failed connection is an error, but it retries. If
// that affects a call, the call returns an error. So here it is a warning.
func logLevel(e kafka.LogEvent) slog.Level {
	switch { // lower is more severe
	case strings.HasSuffix(e.Message, replacedHandle):
		return slog.LevelDebug
	case e.Level <= 2:
		return slog.LevelError
	case e.Level <= 4:
		return slog.LevelWarn
	case e.Level <= 5:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}
