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
		const some = 1000
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, pattern, some).Result()
			if err != nil {
				return err
			}
			// One command each, because keys of different slots cannot be in one.
			if _, err := node.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, key := range keys {
					p.Unlink(ctx, key)
				}
				return nil
			}); err != nil {
				return err
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
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
