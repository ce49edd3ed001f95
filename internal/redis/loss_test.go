package redis_test

import (
	"errors"
	"testing"

	"github.com/millrace/millrace/internal/redis"
	server "github.com/millrace/millrace/test/servers/redis"
)

// newView returns a view with documents and positions after them.
func newView(t *testing.T, c *redis.Client) *redis.Documents {
	t.Helper()
	docs := c.Documents(view(t))
	if err := docs.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := docs.Save(t.Context(), many(1, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := docs.MovePositions(t.Context(), []redis.Move{{Field: "t/0", To: "5"}}); err != nil {
		t.Fatal(err)
	}
	return docs
}

// intact reports whether the view has positions.
func intact(t *testing.T, docs *redis.Documents) bool {
	t.Helper()
	positions, err := docs.Positions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(positions) > 0
}

// TestLossIsDetected loses data of a view in every way, on its own servers, on each node in turn.
// One of them has the positions.
func TestLossIsDetected(t *testing.T) {
	t.Parallel()
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	move := func(t *testing.T, docs *redis.Documents, from, to string) {
		t.Helper()
		must(t, docs.MovePositions(t.Context(), []redis.Move{{Field: "t/0", From: from, To: to}}))
	}
	restart := func(t *testing.T, s *server.Servers, node int, withData bool) {
		t.Helper()
		must(t, s.Kill(node))
		must(t, s.Restart(node, withData))
	}
	for name, lose := range map[string]func(t *testing.T, s *server.Servers, node int, docs *redis.Documents){
		"flushed": func(t *testing.T, s *server.Servers, node int,
			_ *redis.Documents) {
			must(t, s.FlushAll(node))
		},
		"restarted empty": func(t *testing.T, s *server.Servers, node int,
			_ *redis.Documents) {
			restart(t, s, node, false)
		},
		"restarted with an old copy": func(t *testing.T, s *server.Servers, node int, docs *redis.Documents) {
			must(t, s.Save(node))
			must(t, docs.Save(t.Context(), many(2, 1000)))
			move(t, docs, "5", "6")
			restart(t, s, node, true)
		},
		// This happens if a replica is promoted too early. The positions do not cover the writes
		// yet, but the writer got their acknowledgement.
		"lost the last writes": func(t *testing.T, s *server.Servers, node int, docs *redis.Documents) {
			must(t, s.Save(node))
			must(t, docs.Save(t.Context(), many(2, 1000)))
			restart(t, s, node, true)
		},
	} {
		for kind, nodes := range map[string]int{"one server": 1, "cluster": 3} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				s := server.Servers{Nodes: nodes}
				client := open(t, s.Config(t))
				t.Cleanup(func() { must(t, s.Stop()) })
				docs := client.Documents(view(t))
				for node := range nodes {
					must(t, docs.Begin(t.Context()))
					must(t, docs.Save(t.Context(), many(1, 1000)))
					move(t, docs, "", "5")
					if !intact(t, docs) {
						t.Fatal("the view is not intact at the beginning")
					}

					lose(t, &s, node, docs)
					if err := docs.Save(t.Context(), many(2, 1000)); !errors.Is(err, redis.ErrLost) {
						t.Errorf("node %d: Save returned %v, want ErrLost", node, err)
					}
					if intact(t, docs) {
						t.Errorf("node %d: the process that wrote considers the view intact", node)
					}
					// Another process knows only what Redis returns. An old copy of the positions
					// may match the old data.
					other, err := client.Documents(view(t)).Positions(t.Context())
					must(t, err)
					if at := other["t/0"]; at == "6" || at != "" && (name == "flushed" || name == "restarted empty") {
						t.Errorf("node %d: another process reads the position %s", node, at)
					}

					must(t, docs.Begin(t.Context()))
					if intact(t, docs) {
						t.Error("the view has positions after Begin")
					}
					must(t, docs.Save(t.Context(), many(2, 1000)))
					for _, doc := range many(2, 1000) {
						if ids, err := docs.Lookup(t.Context(), doc.Reference); err != nil || len(ids) != 1 ||
							ids[0] != doc.ID {
							t.Fatalf("%s leads to %v (%v)", doc.Reference, ids, err)
						}
					}
					if n, err := docs.Count(t.Context()); err != nil || n != 1000 {
						t.Errorf("%d documents (%v)", n, err)
					}
					must(t, client.Forget(t.Context(), view(t)))
				}
			})
		}
	}
}

// The loss of one shard is detected, as after its hash was evicted or deleted.
func TestLostShardIsDetected(t *testing.T) {
	t.Parallel()
	docs := newView(t, open(t, one.Config(t)))
	if _, err := one.Do(t.Context(), 0, "DEL", "millrace:"+t.Name()+":v1:docs:{"+t.Name()+":v1:00}"); err != nil {
		t.Fatal(err)
	}
	if intact(t, docs) {
		t.Error("the view is intact")
	}
}

// If another process has detected a loss first and begun the view again, this process can write
// neither documents nor positions.
func TestFencedProcessWritesNothing(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		c := open(t, cfg)
		old := newView(t, c)
		if err := c.Forget(t.Context(), view(t)); err != nil {
			t.Fatal(err)
		}
		other := c.Documents(view(t))
		if err := other.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := other.MovePositions(t.Context(), []redis.Move{{Field: "t/0", To: "5"}}); err != nil {
			t.Fatal(err)
		}
		if err := old.Save(t.Context(), many(3, 100)); !errors.Is(err, redis.ErrLost) {
			t.Errorf("Save returned %v, want ErrLost", err)
		}
		if err := old.MovePositions(t.Context(), []redis.Move{{Field: "t/0", From: "5", To: "9"}}); !errors.Is(err,
			redis.ErrLost) {
			t.Errorf("MovePositions returned %v, want ErrLost", err)
		}
		if got, err := other.Positions(t.Context()); err != nil || got["t/0"] != "5" {
			t.Errorf("positions %v, %v", got, err)
		}
	})
}
