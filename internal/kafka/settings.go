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

// Settings returns a fault for each setting of a topic that is not what the system relies on. An
// error means that a topic could not be checked.
func (a *Admin) Settings(ctx context.Context, topics ...Topic) ([]settings.Fault, error) {
	resources := make([]kafka.ConfigResource, len(topics))
	byName := make(map[string]Topic, len(topics))
	for i, t := range topics {
		resources[i] = kafka.ConfigResource{Type: kafka.ResourceTopic, Name: t.Name}
		byName[t.Name] = t
	}
	answers, err := a.admin.DescribeConfigs(ctx, resources, kafka.SetAdminRequestTimeout(describeWithin))
	if err != nil {
		return nil, fmt.Errorf("kafka: ask for the settings of topics: %w", err)
	}
	var faults []settings.Fault
	for _, answer := range answers {
		if answer.Error.Code() != kafka.ErrNoError {
			return faults, fmt.Errorf("kafka: ask for the settings of topic %s (the right DescribeConfigs is needed): %w", answer.Name, answer.Error)
		}
		config := make(map[string]string, len(answer.Config))
		for name, entry := range answer.Config {
			config[name] = entry.Value
		}
		replicas, err := a.copies(answer.Name)
		if err != nil {
			return faults, err
		}
		faults = append(faults, topicFaults(byName[answer.Name], config, replicas)...)
	}
	return faults, nil
}

// describeWithin bounds requests for descriptions.
const describeWithin = 10 * time.Second

// copies returns the number of replicas of one of the topic's partitions.
func (a *Admin) copies(topic string) (int, error) {
	meta, err := a.admin.GetMetadata(&topic, false, int(slice.Milliseconds()))
	if err != nil {
		return 0, fmt.Errorf("kafka: ask about topic %s: %w", topic, err)
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
			Resource: "topic " + t.Name, Setting: setting, Value: config[setting], Want: want, Effect: effect, Fatal: fatal,
			Remedy: fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", t.Name, setting, set),
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
		add(true, "cleanup.policy", "compact", "compact", "old positions are deleted, and what was published is published again")
	case !t.Compacted && has("compact"):
		add(true, "cleanup.policy", "delete", "delete", "of each stream only the last event is kept, and every rebuild of a view or table loses the rest")
	}
	if !t.Compacted {
		for _, setting := range []string{"retention.ms", "retention.bytes"} {
			if n, told := number(setting); told && n >= 0 {
				add(true, setting, "-1", "-1", "old events are deleted, and every rebuild of a view or table loses them")
			}
		}
	}
	if least, told := number("min.insync.replicas"); told {
		switch {
		case int(least) > replicas:
			add(true, "min.insync.replicas", fmt.Sprintf("at most %d, the number of replicas", replicas), strconv.Itoa(max(1, replicas-1)), "nothing can be written")
		case replicas > 1 && least < 2:
			add(false, "min.insync.replicas", "2", "2", "an acknowledged event may be on one broker only, and be lost with it")
		}
	}
	if n, told := number("max.message.bytes"); told && n < maxRecord {
		add(true, "max.message.bytes", fmt.Sprintf("at least %d", maxRecord), strconv.Itoa(maxRecord+48588), "a large event stops the relay")
	}
	if config["unclean.leader.election.enable"] == "true" {
		add(false, "unclean.leader.election.enable", "false", "false", "acknowledged events are lost where a broker that lags becomes the leader")
	}
	return faults
}
