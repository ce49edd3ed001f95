package redis

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Drop deletes everything of the view, including its positions.
func (d *Documents) Drop(ctx context.Context) error {
	return unlinkAll(ctx, d.rdb, prefix+d.name+":*")
}

// unlinkAll deletes all keys that match a pattern, on all nodes.
func unlinkAll(ctx context.Context, rdb redis.UniversalClient, pattern string) error {
	unlink := func(ctx context.Context, node redis.UniversalClient) error {
		keys := node.Scan(ctx, 0, pattern, 1000).Iterator()
		for keys.Next(ctx) {
			if err := node.Unlink(ctx, keys.Val()).Err(); err != nil {
				return err
			}
		}
		return keys.Err()
	}
	var err error
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return unlink(ctx, node) })
	} else {
		err = unlink(ctx, rdb)
	}
	if err != nil {
		return fmt.Errorf("redis: delete the keys %s: %w", pattern, err)
	}
	return nil
}
