package kafka

import (
	"context"
	"errors"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// These functions change topics as an operator or an accident does. brokers are those that Each
// passes.

// AddPartitions adds partitions to a topic. Existing records stay where they are. New records of a
// key may go to another partition than its earlier ones.
func AddPartitions(ctx context.Context, brokers, topic string, partitions int) error {
	return withClient(brokers, func(admin *kadm.Client) error {
		answers, err := admin.UpdatePartitions(ctx, partitions, topic)
		return errors.Join(err, answers.Error())
	})
}

// Delete deletes a topic.
func Delete(ctx context.Context, brokers, topic string) error {
	return withClient(brokers, func(admin *kadm.Client) error {
		answers, err := admin.DeleteTopics(ctx, topic)
		return errors.Join(err, answers.Error())
	})
}

// DeleteRecords deletes all current records of a topic, as its retention would. Offsets continue,
// so the topic then starts at a later offset than 0.
func DeleteRecords(ctx context.Context, brokers, topic string) error {
	return withClient(brokers, func(admin *kadm.Client) error {
		ends, err := admin.ListEndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		answers, err := admin.DeleteRecords(ctx, ends.Offsets())
		return errors.Join(err, answers.Error())
	})
}

// withClient runs a function with a client that exists only for that call.
func withClient(brokers string, with func(*kadm.Client) error) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		return err
	}
	defer client.Close()
	return with(kadm.NewClient(client))
}
