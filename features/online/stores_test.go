package online_test

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
	server "github.com/millrace/millrace/test/servers/redis"
)

// All tests share one Redis of each kind. Facts of other definitions have other keys.
var (
	oneRedis server.Servers
	cluster  = server.Servers{Nodes: 3, Secure: true}
)

// testStore is a store of any kind.
type testStore interface {
	online.Reader
	apply(b online.Batch) error
	trim(now time.Time) (dropped int, err error)
	// reopen returns a store with the same facts, as another process has it.
	reopen(t rapid.TB) testStore
}

// stores runs a test with every kind of store. open returns an empty one.
func stores(t *testing.T, test func(t *testing.T, open func(t rapid.TB, groups []*features.Group, o online.Options) testStore)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, func(t rapid.TB, groups []*features.Group, o online.Options) testStore {
			s, err := online.New(groups, o)
			if err != nil {
				t.Fatal(err)
			}
			return inMemory{s, o}
		})
	})
	for name, config := range map[string]func(t *testing.T) redis.Config{
		"embedded Redis": embeddedRedis,
		"Redis":          func(t *testing.T) redis.Config { return oneRedis.Config(t) },
		"Redis cluster":  func(t *testing.T) redis.Config { return cluster.Config(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := openRedis(t, config(t))
			test(t, func(t rapid.TB, groups []*features.Group, o online.Options) testStore {
				return newShared(t, client, groups, o, "")
			})
		})
	}
}

func embeddedRedis(t *testing.T) redis.Config {
	s, err := embedded.Start(t.Context(), embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return redis.Config{Addr: s.Addr()}
}

func openRedis(t testing.TB, cfg redis.Config) *redis.Client {
	t.Helper()
	c, err := redis.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// inMemory is a Store.
type inMemory struct {
	*online.Store
	options online.Options
}

func (s inMemory) apply(b online.Batch) error                  { return s.Apply(b) }
func (s inMemory) trim(now time.Time) (dropped int, err error) { return s.Trim(now), nil }

func (s inMemory) reopen(t rapid.TB) testStore {
	return inMemory{reread(t, s.Store, s.options), s.options}
}

// inRedis is a Shared.
type inRedis struct {
	*online.Shared
	client  *redis.Client
	options online.Options
	epoch   string
}

// newShared returns a store in Redis: of an epoch, or an empty one.
func newShared(t rapid.TB, c *redis.Client, groups []*features.Group, o online.Options, epoch string) inRedis {
	s, err := online.NewShared(c, groups, o)
	if err != nil {
		t.Fatal(err)
	}
	if epoch == "" {
		if epoch, err = s.Begin(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Use(context.Background()); err != nil {
		t.Fatal(err)
	}
	return inRedis{s, c, o, epoch}
}

func (s inRedis) apply(b online.Batch) error {
	err := s.Apply(context.Background(), s.epoch, "id", b, s.begins(b))
	if err != nil {
		return err
	}
	return s.Use(context.Background())
}

// begins reports whether nothing of a batch's partition is stored, as a reader finds out at its start.
func (s inRedis) begins(b online.Batch) bool {
	_, stored := s.Positions(b.Topic)[b.Partition]
	return !stored
}

func (s inRedis) trim(now time.Time) (dropped int, err error) {
	return s.Trim(context.Background(), now)
}

func (s inRedis) reopen(t rapid.TB) testStore {
	return newShared(t, s.client, s.Groups(), s.options, s.epoch)
}
