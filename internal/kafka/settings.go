package kafka

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/settings"
)

// maxRecord is librdkafka's message.max.bytes, in bytes. No producer here raises it, so a topic
// must accept records of that size.
const maxRecord = 1_000_000

// Settings checks the settings of topics and returns a fault for each one that the system cannot
// rely on. An error means that a topic could not be checked.
func (a *Admin) Settings(ctx context.Context, topics ...Topic) ([]settings.Fault, error) {
	resources := make([]kafka.ConfigResource, len(topics))
	byName := make(map[string]Topic, len(topics))
	for i, t := range topics {
		resources[i] = kafka.ConfigResource{Type: kafka.ResourceTopic, Name: t.Name}
		byName[t.Name] = t
	}
	answers, err := a.admin.DescribeConfigs(ctx, resources, kafka.SetAdminRequestTimeout(describeTimeout))
	if err != nil {
		return nil, fmt.Errorf("kafka: read the settings of topics: %w", err)
	}
	var faults []settings.Fault
	for _, answer := range answers {
		if answer.Error.Code() != kafka.ErrNoError {
			return faults, fmt.Errorf("kafka: read the settings of topic %s: grant DescribeConfigs on it: %w",
				answer.Name, answer.Error)
		}
		config := make(map[string]string, len(answer.Config))
		for name, entry := range answer.Config {
			config[name] = entry.Value
		}
		replicas, err := a.replicaCount(answer.Name)
		if err != nil {
			return faults, err
		}
		faults = append(faults, topicFaults(byName[answer.Name], config, replicas)...)
	}
	return faults, nil
}

// describeTimeout bounds requests for descriptions.
const describeTimeout = 10 * time.Second

// replicaCount returns the number of replicas of one of the topic's partitions.
func (a *Admin) replicaCount(topic string) (int, error) {
	meta, err := a.admin.GetMetadata(&topic, false, int(describeTimeout.Milliseconds()))
	if err != nil {
		return 0, fmt.Errorf("kafka: describe topic %s: %w", topic, err)
	}
	for _, p := range meta.Topics[topic].Partitions {
		return len(p.Replicas), nil
	}
	return 0, fmt.Errorf("kafka: topic %s: %w", topic, ErrUnknownTopic)
}

// topicFaults checks a topic's settings, as DescribeConfigs returns them. It skips settings that
// the server does not return.
func topicFaults(t Topic, config map[string]string, replicas int) []settings.Fault {
	var faults []settings.Fault
	add := func(fatal bool, setting, want, set, effect string) {
		faults = append(faults, settings.Fault{
			Resource: "topic " + t.Name, Setting: setting, Value: config[setting], Want: want, Effect: effect,
			Fatal: fatal,
			Remedy: fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s",
				t.Name, setting, set),
		})
	}
	number := func(setting string) (int64, bool) {
		n, err := strconv.ParseInt(config[setting], 10, 64)
		return n, err == nil
	}
	policy := strings.Split(config["cleanup.policy"], ",")
	has := func(want string) bool {
		for _, p := range policy {
			if strings.TrimSpace(p) == want {
				return true
			}
		}
		return false
	}
	switch {
	case config["cleanup.policy"] == "":
	case t.Compacted && (has("delete") || !has("compact")):
		add(true, "cleanup.policy", "compact", "compact", "records that apply are deleted: checkpoints, so events are published again, or flags")
	case !t.Compacted && has("compact"):
		add(true, "cleanup.policy", "delete", "delete",
			"only the last record of each key is kept, so a rebuilt view or table lacks events, or a flag its history")
	}
	if !t.Compacted {
		want, words := "-1", "-1"
		if keep := t.Retention.Milliseconds(); keep > 0 {
			want, words = strconv.FormatInt(keep, 10), fmt.Sprintf("at least %d, as configured", keep)
		}
		if n, known := number("retention.ms"); known && n >= 0 && (t.Retention == 0 || n < t.Retention.Milliseconds()) {
			add(true, "retention.ms", words, want,
				"old records are deleted, so a rebuilt view or table lacks events, or a flag its history")
		}
		if n, known := number("retention.bytes"); known && n >= 0 {
			add(true, "retention.bytes", "-1", "-1",
				"old records are deleted, so a rebuilt view or table lacks events, or a flag its history")
		}
	}
	// A write succeeds only if that many replicas have it. So a number above the replicas that
	// exist fails every write, and with 1, a record that only one broker has is acknowledged.
	if least, known := number("min.insync.replicas"); known {
		switch {
		case int(least) > replicas:
			add(true, "min.insync.replicas", fmt.Sprintf("at most %d, the number of replicas", replicas),
				strconv.Itoa(max(1, replicas-1)), "all writes fail")
		case replicas > 1 && least < 2:
			add(false, "min.insync.replicas", "2", "2",
				"an acknowledged event may be on a single broker, and is lost if that broker is")
		}
	}
	if n, known := number("max.message.bytes"); known && n < maxRecord {
		add(true, "max.message.bytes", fmt.Sprintf("at least %d", maxRecord), strconv.Itoa(maxRecord+48588),
			"a large event stops the relay")
	}
	if config["unclean.leader.election.enable"] == "true" {
		add(false, "unclean.leader.election.enable", "false", "false",
			"acknowledged events are lost if a replica that lags becomes the leader")
	}
	return faults
}
