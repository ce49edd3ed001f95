package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// ActiveGroups returns the consumer groups that have members and whose names start with a prefix.
func (a *Admin) ActiveGroups(ctx context.Context, prefix string) ([]string, error) {
	answer, err := a.admin.ListConsumerGroups(ctx, kafka.SetAdminRequestTimeout(describeTimeout))
	if err != nil {
		return nil, fmt.Errorf("kafka: list the consumer groups: %w", err)
	}
	var active []string
	for _, g := range answer.Valid {
		if strings.HasPrefix(g.GroupID, prefix) && g.State != kafka.ConsumerGroupStateEmpty &&
			g.State != kafka.ConsumerGroupStateDead {
			active = append(active, g.GroupID)
		}
	}
	slices.Sort(active)
	return active, nil
}

// RecreateTopics deletes topics with all their records, and creates them again. It returns when the
// brokers know the new topics. Consumers recognise a new topic by its id.
func (a *Admin) RecreateTopics(ctx context.Context, topics ...Topic) error {
	before := map[string]string{} // ids of the old topics, by name
	var existing []string
	for _, t := range topics {
		info, err := a.Topic(ctx, t.Name)
		// There is nothing to delete.
		if errors.Is(err, ErrUnknownTopic) {
			continue
		}
		if err != nil {
			return err
		}
		before[t.Name] = info.ID
		existing = append(existing, t.Name)
	}
	var answers []kafka.TopicResult
	if len(existing) > 0 {
		var err error
		if answers, err = a.admin.DeleteTopics(ctx, existing,
			kafka.SetAdminOperationTimeout(describeTimeout)); err != nil {
			return fmt.Errorf("kafka: delete the topics %s: %w", strings.Join(existing, ", "), err)
		}
	}
	for _, answer := range answers {
		if c := answer.Error.Code(); c != kafka.ErrNoError && c != kafka.ErrUnknownTopicOrPart {
			return fmt.Errorf("kafka: delete topic %s: %w", answer.Topic, answer.Error)
		}
	}
	// For a while, a broker may still know the old topic and report that it exists.
	for {
		err := a.EnsureTopics(ctx, topics...)
		for _, t := range topics {
			if err != nil {
				break
			}
			var now TopicInfo
			if now, err = a.Topic(ctx, t.Name); err == nil && now.ID != "" && now.ID == before[t.Name] {
				err = fmt.Errorf("topic %s still exists", t.Name)
			}
		}
		if err == nil {
			return nil
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return fmt.Errorf("kafka: recreate topics: %w: %w", context.Cause(ctx), err)
		}
	}
}
