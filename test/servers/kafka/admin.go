package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Leader returns the node that leads a partition, counted from 0 like those of KillNode. It fails
// if the partition has no leader at the moment.
func (c *Cluster) Leader(ctx context.Context, topic string, partition int32) (node int, err error) {
	err = c.withAdmin(func(admin *kadm.Client) error {
		topics, err := admin.ListTopics(ctx, topic)
		if err = errors.Join(err, topics.Error()); err != nil {
			return err
		}
		node = int(topics[topic].Partitions[partition].Leader) - 1
		return topics[topic].Partitions[partition].Err
	})
	return node, err
}

// Coordinator returns the node that coordinates the transactions of a transactional id. A test
// kills it to interrupt a transaction.
func (c *Cluster) Coordinator(ctx context.Context, transactionalID string) (node int, err error) {
	err = c.withAdmin(func(admin *kadm.Client) error {
		found := admin.FindTxnCoordinators(ctx, transactionalID)
		node = int(found[transactionalID].NodeID) - 1
		return found.Error()
	})
	return node, err
}

// AwaitInSync returns once every partition, including those of Kafka's own topics, has all its
// replicas in sync, so that the next node may fail. A test that kills one node after another calls
// it in between. Otherwise two of three replicas could be missing, and the cluster could not accept
// records.
func (c *Cluster) AwaitInSync(ctx context.Context) error {
	return c.withAdmin(func(admin *kadm.Client) error {
		for {
			behind, err := behind(ctx, admin)
			if err == nil && behind == "" {
				return nil
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("not in sync: %s: %w", behind, errors.Join(err, ctx.Err()))
			}
		}
	})
}

// behind describes the first partition that it finds without all its replicas. It returns "" if
// there is none.
func behind(ctx context.Context, admin *kadm.Client) (string, error) {
	topics, err := admin.ListTopicsWithInternal(ctx)
	if err != nil {
		return "", err
	}
	for _, t := range topics {
		for _, p := range t.Partitions {
			if p.Err != nil {
				return "", fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, p.Err)
			}
			if len(p.ISR) < len(p.Replicas) {
				return fmt.Sprintf("%s/%d has %d of %d", t.Topic, p.Partition, len(p.ISR), len(p.Replicas)), nil
			}
		}
	}
	return "", nil
}

// withAdmin runs a function with a client of the whole cluster. The client is new each time, so
// that it is not affected by nodes that an earlier call has seen. It may refresh its metadata every
// 10 ms, because the callers poll for changes.
func (c *Cluster) withAdmin(do func(*kadm.Client) error) error {
	brokers, err := c.Start()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...),
		kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	return do(kadm.NewClient(client))
}

// Assigned returns how many of a topic's partitions are assigned to the members of a consumer
// group. It is 0 during a rebalance, and before the group exists. So a test can poll it until all
// partitions have a consumer.
func (c *Cluster) Assigned(ctx context.Context, group, topic string) (partitions int, err error) {
	err = c.withAdmin(func(admin *kadm.Client) error {
		groups, err := admin.DescribeGroups(ctx, group)
		if err == nil {
			err = groups[group].Err
		}
		if errors.Is(err, kerr.GroupIDNotFound) || errors.Is(err, kerr.CoordinatorNotAvailable) || errors.Is(err,
			kerr.NotCoordinator) {
			return nil // not yet
		}
		if err != nil {
			return err
		}
		if g := groups[group]; g.State == "Stable" {
			assigned := g.AssignedPartitions()
			partitions = len(assigned[topic])
		}
		return nil
	})
	return partitions, err
}
