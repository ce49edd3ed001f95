package redis

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/millrace/millrace/internal/settings"
)

// Settings checks the settings of all servers and returns a fault for each one that views cannot
// rely on. A server that does not report its settings is not checked.
func (c *Client) Settings(ctx context.Context) ([]settings.Fault, error) {
	var mu sync.Mutex
	var faults []settings.Fault
	check := func(ctx context.Context, node redis.Cmdable, name string) error {
		info := map[string]string{}
		for _, section := range []string{"memory", "persistence"} { // INFO is allowed where CONFIG is not
			text, err := node.Info(ctx, section).Result()
			if err != nil {
				return fmt.Errorf("redis: read the settings of %s: %w", name, err)
			}
			for line := range strings.Lines(text) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
				info[key] = value
			}
		}
		mu.Lock()
		defer mu.Unlock()
		faults = append(faults, serverFaults(name, info)...)
		return nil
	}
	switch rdb := c.rdb.(type) {
	case *redis.ClusterClient:
		err := rdb.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			return check(ctx, node, node.Options().Addr)
		})
		return faults, err
	case *redis.Client:
		return faults, check(ctx, rdb, rdb.Options().Addr)
	default:
		return nil, nil
	}
}

// serverFaults checks the memory section of INFO.
func serverFaults(addr string, info map[string]string) []settings.Fault {
	policy := info["maxmemory_policy"]
	// Keys of views do not expire, so a policy that evicts expiring keys never evicts one.
	if policy == "" || policy == "noeviction" || strings.HasPrefix(policy, "volatile-") {
		return nil
	}
	limited := info["maxmemory"] != "" && info["maxmemory"] != "0"
	return []settings.Fault{{
		Resource: "redis " + addr, Setting: "maxmemory-policy", Value: policy, Want: "noeviction", Fatal: limited,
		Effect: "Redis evicts documents and references of views when memory is short",
		Remedy: "redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf",
	}}
}
