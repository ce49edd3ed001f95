package kafka_test

import (
	"slices"
	"testing"
	"time"

	confluent "github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/settings"
)

// Harmful settings of a topic are found, and topics that EnsureTopics creates have no fault.
func TestSettingsOfTopics(t *testing.T) {
	each(t, 0, func(t *testing.T, b broker) {
		admin, err := kafka.NewAdmin(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(admin.Close)
		const week = 7 * 24 * time.Hour
		keep := map[string]time.Duration{ // the others keep events forever
			"one that keeps events for a week, as configured":  week,
			"one that keeps events for a week, instead of two": 2 * week,
		}
		for name, c := range map[string]struct {
			compacted bool
			config    map[string]string
			want      []string // settings with a fatal fault
		}{
			"an event topic that is compacted": {false,
				map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"}, []string{"cleanup.policy"}},
			"one that is compacted and deleted": {false,
				map[string]string{"cleanup.policy": "compact,delete", "retention.ms": "-1"},
				[]string{"cleanup.policy"}},
			"one that keeps events for a week": {false, map[string]string{"retention.ms": "604800000"},
				[]string{"retention.ms"}},
			"one that keeps events for a week, as configured": {false, map[string]string{"retention.ms": "604800000"}, nil},
			"one that keeps events for a week, instead of two": {false, map[string]string{"retention.ms": "604800000"},
				[]string{"retention.ms"}},
			"one of bounded size": {false,
				map[string]string{"retention.ms": "-1", "retention.bytes": "1000000"}, []string{"retention.bytes"}},
			"one that requires more replicas than it has": {false,
				map[string]string{"retention.ms": "-1", "min.insync.replicas": "2"}, []string{"min.insync.replicas"}},
			"one for small records": {false,
				map[string]string{"retention.ms": "-1", "max.message.bytes": "1000"}, []string{"max.message.bytes"}},
			"positions that are deleted": {true, map[string]string{"cleanup.policy": "delete"},
				[]string{"cleanup.policy"}},
			"positions that are also deleted": {true, map[string]string{"cleanup.policy": "compact,delete"},
				[]string{"cleanup.policy"}},
			"a valid event topic": {false,
				map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}, nil},
			"created by EnsureTopics":           {false, nil, nil},
			"positions created by EnsureTopics": {true, nil, nil},
		} {
			t.Run(name, func(t *testing.T) {
				b := newBroker(b.Config)
				topic := kafka.Topic{Name: b.topic, Partitions: 1, Compacted: c.compacted, Retention: keep[name]}
				if c.config != nil {
					b.create(t, c.config)
				}
				if err := admin.EnsureTopics(t.Context(), topic); err != nil {
					t.Fatal(err)
				}
				faults, err := admin.Settings(t.Context(), topic)
				if err != nil {
					t.Fatal(err)
				}
				var fatal []string
				for _, f := range faults {
					if f.Fatal {
						fatal = append(fatal, f.Setting)
					}
				}
				if !slices.Equal(fatal, c.want) {
					t.Errorf("fatal faults of %v, want %v; all: %v", fatal, c.want, faults)
				}
				if refused := settings.Refuse(faults) != nil; refused != (c.want != nil) {
					t.Errorf("refused: %v", refused)
				}
			})
		}
	})
}

// create creates the topic with other settings than EnsureTopics.
func (b broker) create(t *testing.T, config map[string]string) {
	t.Helper()
	other, err := confluent.NewAdminClient(&confluent.ConfigMap{"bootstrap.servers": b.Brokers})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	made, err := other.CreateTopics(t.Context(),
		[]confluent.TopicSpecification{{Topic: b.topic, NumPartitions: 1, ReplicationFactor: 1, Config: config}})
	if err != nil || made[0].Error.Code() != confluent.ErrNoError {
		t.Fatal(err, made)
	}
}
