// Package kafka is the one place that knows confluent-kafka-go, the client for everything that is
// done event by event or inside a transaction: the relay's transactional producer, the sinks'
// consumer, and the administration of topics. Reading whole batches into columns has its own
// client, in fetch.
//
// It turns librdkafka's errors into the few that a caller decides by, its logs into slog, and its
// blocking calls into ones that end with their context.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/kafka/security"
)

// Config says where Kafka is and how to talk to it.
type Config struct {
	// Brokers is "host:port,host:port".
	Brokers string
	// ClientID names this client in the brokers' logs and metrics.
	ClientID string
	// Security is how to reach the brokers, and as whom. What is given by half is an error when a
	// client is opened.
	Security security.Config
	// Replicas is how many copies of each partition EnsureTopics makes; what the brokers do by
	// default where 0.
	Replicas int
	// Stall is how long ReadAll waits for its next step before it fails with ErrStalled; 20 s where
	// 0.
	Stall time.Duration
	// Extra are further librdkafka properties, for tuning. What correctness rests on, such as the
	// isolation level, cannot be changed by them.
	Extra map[string]string
	// Logger is slog.Default() where nil.
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

// configMap merges the properties of a client: tuning, which Extra may change, and must, which it
// may not.
func (c Config) configMap(l *logs, tuning, must kafka.ConfigMap) (*kafka.ConfigMap, error) {
	if c.Brokers == "" {
		return nil, errors.New("kafka: no brokers given")
	}
	m := kafka.ConfigMap{
		"socket.nagle.disable":     true,
		"reconnect.backoff.ms":     20,
		"reconnect.backoff.max.ms": 1000,
		"enable.metrics.push":      false,
	}
	if err := secure(m, c.Security); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	maps.Copy(m, tuning)
	for k, v := range c.Extra {
		if _, ours := must[k]; ours {
			return nil, fmt.Errorf("kafka: property %s is not yours to set: correctness rests on its value", k)
		}
		m[k] = v
	}
	maps.Copy(m, must)
	m["bootstrap.servers"] = c.Brokers
	if c.ClientID != "" {
		m["client.id"] = c.ClientID
	}
	m["go.logs.channel.enable"] = true
	m["go.logs.channel"] = l.events
	return &m, nil
}

// secure says in librdkafka's words what the description says.
func secure(m kafka.ConfigMap, s security.Config) error {
	if err := s.Validate(); err != nil {
		return err
	}
	// Read here for the sake of the error alone: librdkafka's names neither the setting nor what is
	// wrong with the file.
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

// logs carries a client's log to slog. Close it after the client.
type logs struct {
	events chan kafka.LogEvent
	done   sync.WaitGroup
}

func newLogs(to *slog.Logger) *logs {
	l := &logs{events: make(chan kafka.LogEvent, 64)}
	l.done.Go(func() {
		for e := range l.events {
			to.Log(context.Background(), severity(e.Level), "kafka: "+e.Message, "client", e.Name, "about", e.Tag)
		}
	})
	return l
}

func (l *logs) close() {
	close(l.events)
	l.done.Wait()
}

// severity maps a syslog level. A connection that fails is "error" to librdkafka, which continues
// trying; what it means for the work at hand comes back as an error of a call, so it is a warning
// here.
func severity(syslog int) slog.Level {
	switch {
	case syslog <= 2:
		return slog.LevelError
	case syslog <= 4:
		return slog.LevelWarn
	case syslog <= 5:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}
