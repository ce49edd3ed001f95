package redis

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Forget deletes the positions of a view.
func (c *Client) Forget(ctx context.Context, view string) error {
	return c.rdb.Del(ctx, c.Documents(view).positionsKey()).Err()
}

// Keys returns the keys of all nodes that begin with a name.
func (c *Client) Keys(ctx context.Context, name string) (all []string, err error) {
	keys := func(ctx context.Context, node redis.UniversalClient) error {
		found := node.Scan(ctx, 0, prefix+name+"*", 1000).Iterator()
		for found.Next(ctx) {
			all = append(all, found.Val())
		}
		return found.Err()
	}
	cluster, ok := c.rdb.(*redis.ClusterClient)
	if !ok {
		err = keys(ctx, c.rdb)
		return all, err
	}
	nodes := make(chan struct{}, 1) // one node at a time
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		nodes <- struct{}{}
		defer func() { <-nodes }()
		return keys(ctx, node)
	})
	return all, err
}
