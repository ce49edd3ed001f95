package redis_test

import (
	"testing"

	"github.com/millrace/millrace/internal/settings"
	server "github.com/millrace/millrace/test/servers/redis"
)

// A server that evicts keys is reported, on every node of a cluster.
func TestSettingsOfServers(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*server.Servers{"redis": {}, "cluster": {Nodes: 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
			c := open(t, s.Config(t))
			node := max(1, s.Nodes) - 1
			for _, set := range []struct {
				policy, memory string
				faults         int
				fatal          bool
			}{
				{"noeviction", "100mb", 0, false},
				{"allkeys-lru", "100mb", 1, true},
				{"allkeys-random", "100mb", 1, true},
				{"allkeys-lfu", "0", 1, false}, // it may use all memory
				{"volatile-ttl", "100mb", 0, false},
				{"noeviction", "0", 0, false},
			} {
				for setting, value := range map[string]string{"maxmemory": set.memory, "maxmemory-policy": set.policy} {
					if _, err := s.Do(t.Context(), node, "CONFIG", "SET", setting, value); err != nil {
						t.Fatal(err)
					}
				}
				faults, err := c.Settings(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if len(faults) != set.faults || (settings.Refuse(faults) != nil) != set.fatal {
					t.Errorf("%s with %s: %v", set.policy, set.memory, faults)
				}
			}
		})
	}
}
