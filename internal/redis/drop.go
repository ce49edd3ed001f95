package redis

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Drop deletes everything of the view, including its positions.
func (d *Documents) Drop(ctx context.Context) error {
	drop := func(ctx context.Context, node redis.UniversalClient) error {
		keys := node.Scan(ctx, 0, prefix+d.name+":*", 1000).Iterator()
		for keys.Next(ctx) {
			if err := node.Unlink(ctx, keys.Val()).Err(); err != nil {
				return err
			}
		}
		return keys.Err()
	}
	var err error
	if cluster, ok := d.rdb.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return drop(ctx, node) })
	} else {
		err = drop(ctx, d.rdb)
	}
	if err != nil {
		return fmt.Errorf("redis: delete the view %s: %w", d.name, err)
	}
	return nil
}
