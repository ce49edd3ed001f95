package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/test/servers/certs"
	"github.com/millrace/millrace/test/servers/process"
	server "github.com/millrace/millrace/test/servers/redis"
)

// All tests share one server of each kind. Each test has its own view.
var (
	one     server.Servers
	secure  = server.Servers{Secure: true}
	cluster = server.Servers{Nodes: 3, Secure: true}
)

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, one.Stop, secure.Stop, cluster.Stop))
}

// servers runs a test with every kind of server.
func servers(t *testing.T, test func(t *testing.T, cfg redis.Config)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		s, err := embedded.Start(t.Context(), embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		test(t, redis.Config{Addr: s.Addr()})
	})
	for name, s := range map[string]*server.Servers{"redis": &one, "redis with TLS and a password": &secure,
		"redis cluster with TLS and a password": &cluster} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s.Config(t))
		})
	}
}

func open(t testing.TB, cfg redis.Config) *redis.Client {
	t.Helper()
	c, err := redis.Open(t.Context(), cfg)
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

// view returns the name of the test's view.
func view(t testing.TB) string { return t.Name() + "/v1" }

// Versions are compared as numbers of 64 bits, and the same version is not written twice.
func TestOnlyHigherVersionsAreWritten(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		docs := open(t, cfg).Documents(view(t))
		ctx := t.Context()
		// These versions would be ordered wrongly as strings or doubles.
		versions := []uint64{2, 1, 10, 9, 10, math.MaxUint64 - 1, math.MaxUint64, math.MaxUint64 - 1, 1 << 53}
		var want uint64
		for i, v := range versions {
			if err := docs.Save(ctx, []redis.Document{{ID: "a", Version: v, Data: fmt.Append(nil, i)}}); err != nil {
				t.Fatal(err)
			}
			want = max(want, v)
			got, err := docs.Load(ctx, "a", "none")
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got["a"].Version != want {
				t.Fatalf("after %v: %v, want version %d", versions[:i+1], got, want)
			}
		}
		if got, _ := docs.Load(ctx, "a"); string(got["a"].Data) != "6" {
			t.Fatalf("the same version was written again: %s", got["a"].Data)
		}
	})
}

// Whatever the order of concurrent writes, the highest version remains.
func TestConcurrentWritersLeaveTheHighestVersion(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		c := open(t, cfg)
		docs := c.Documents(view(t))
		const writers, versions = 8, 40
		var g sync.WaitGroup
		for w := range writers {
			g.Go(func() {
				for v := range versions {
					version := uint64((v*7+w*11)%versions + 1)
					batch := []redis.Document{{ID: "x", Version: version, Data: fmt.Append(nil, version)},
						{ID: "y", Version: version, Data: fmt.Append(nil, version)}}
					if err := docs.Save(t.Context(), batch); err != nil {
						t.Error(err)
					}
				}
			})
		}
		g.Wait()
		got, err := docs.Load(t.Context(), "x", "y")
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"x", "y"} {
			if got[id].Version != versions || string(got[id].Data) != fmt.Sprint(versions) {
				t.Errorf("%s is at version %d with %s", id, got[id].Version, got[id].Data)
			}
		}
	})
}

// The documents behave like a map from id to the highest version ever written, whatever bytes they
// contain.
func TestDocumentsAreAMap(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		c := open(t, cfg)
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			docs := c.Documents(fmt.Sprintf("%s/v%d", t.Name(), n))
			model := map[string]redis.Document{}
			batches := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) redis.Document {
				return redis.Document{
					ID:      rapid.StringMatching(`[a-z]{1,2}`).Draw(rt, "id"),
					Version: rapid.Uint64Range(1, 9).Draw(rt, "version"),
					Data:    rapid.SliceOf(rapid.Byte()).Draw(rt, "data"),
				}
			}), 0, 20), 1, 5).Draw(rt, "batches")
			for _, batch := range batches {
				if err := docs.Save(context.Background(), batch); err != nil {
					rt.Fatal(err)
				}
				for _, d := range batch {
					if d.Version > model[d.ID].Version {
						model[d.ID] = d
					}
				}
			}
			equal := func(a, b redis.Document) bool {
				return a.ID == b.ID && a.Version == b.Version && bytes.Equal(a.Data, b.Data)
			}
			loaded, err := docs.Load(context.Background(), slices.Collect(maps.Keys(model))...)
			if err != nil || !maps.EqualFunc(loaded, model, equal) {
				rt.Fatalf("Load: %v, %v, want %v", loaded, err, model)
			}
			each := map[string]redis.Document{}
			if err := docs.Each(context.Background(), func(d redis.Document) error {
				if _, twice := each[d.ID]; twice {
					return errors.New("twice")
				}
				each[d.ID] = d
				return nil
			}); err != nil || !maps.EqualFunc(each, model, equal) {
				rt.Fatalf("Each: %v, %v, want %v", each, err, model)
			}
			if count, err := docs.Count(context.Background()); err != nil || count != uint64(len(model)) {
				rt.Fatalf("Count: %d, %v, want %d", count, err, len(model))
			}
		})
	})
}

// A reference leads to all documents that were saved with it.
func TestLookup(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		docs := open(t, cfg).Documents(view(t))
		ctx := t.Context()
		for _, d := range []redis.Document{
			{ID: "a", Version: 1, Reference: "no 1"},
			{ID: "ab", Version: 1, Reference: "no 1"},
			{ID: "b", Version: 1, Reference: "no 1"},
			{ID: "a", Version: 1, Reference: "no 1"}, // again
			{ID: "c", Version: 1, Reference: "no 2"},
			{ID: "d", Version: 1},
		} {
			if err := docs.Save(ctx, []redis.Document{d}); err != nil {
				t.Fatal(err)
			}
		}
		for reference, want := range map[string][]string{"no 1": {"a", "ab", "b"}, "no 2": {"c"}, "no 3": nil} {
			got, err := docs.Lookup(ctx, reference)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %v, %v, want %v", reference, got, err, want)
			}
		}
	})
}

// A move is refused unless the position has the value that the move starts from, or the one that it
// ends with, because a call may be repeated.
func TestPositionsMoveFromTheirValue(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		docs := open(t, cfg).Documents(view(t))
		ctx := t.Context()
		move := func(conflict string, moves ...redis.Move) {
			t.Helper()
			err := docs.MovePositions(ctx, moves)
			if (conflict == "") != (err == nil) ||
				(err != nil && (!errors.Is(err, redis.ErrLost) || !strings.Contains(err.Error(), conflict))) {
				t.Fatalf("%v: %v, want that it names %q", moves, err, conflict)
			}
		}
		holds := func(want map[string]string) {
			t.Helper()
			if got, err := docs.Positions(ctx); err != nil || !maps.Equal(got, want) {
				t.Fatalf("positions %v, %v, want %v", got, err, want)
			}
		}
		holds(nil)
		move("epoch", redis.Move{"t/0", "", "5"}) // not begun
		if err := docs.Begin(ctx); err != nil {
			t.Fatal(err)
		}
		holds(nil)
		move("", redis.Move{"t/0", "", "5"}, redis.Move{"t/1", "", "7"})
		move("", redis.Move{"t/0", "", "5"}) // the answer was lost
		move("t/1", redis.Move{"t/0", "5", "6"}, redis.Move{"t/1", "6", "8"})
		holds(map[string]string{"t/0": "5", "t/1": "7"})
		move("t/2", redis.Move{"t/2", "3", "4"}) // was flushed
		move("", redis.Move{"t/0", "5", ""})
		move("", redis.Move{"t/0", "", "1"})
		holds(map[string]string{"t/0": "1", "t/1": "7"})
		if err := docs.Begin(ctx); err != nil { // again: it is intact
			t.Fatal(err)
		}
		holds(map[string]string{"t/0": "1", "t/1": "7"})
	})
}

// Every node of a cluster has some data of a view.
func TestViewSpreadsOverCluster(t *testing.T) {
	t.Parallel()
	docs := open(t, cluster.Config(t)).Documents(view(t))
	if err := docs.Save(t.Context(), many(1, 1000)); err != nil {
		t.Fatal(err)
	}
	for node := range cluster.Nodes {
		for _, kind := range []string{"docs", "ref"} {
			keys, err := cluster.Do(t.Context(), node, "--scan", "--pattern", "millrace:"+t.Name()+":v1:"+kind+":*")
			if err != nil || keys == "" {
				t.Errorf("node %d has no key of kind %s (%v)", node, kind, err)
			}
		}
	}
}

// A process that only answers queries works with a user that has read access only.
func TestReadOnlyUser(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*server.Servers{"one server": &secure, "cluster": &cluster} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newView(t, open(t, s.Config(t)))
			cfg := s.Config(t)
			cfg.Username = server.Reader
			docs := open(t, cfg).Documents(view(t))
			loaded, err1 := docs.Load(t.Context(), "id 1", "id 2")
			ids, err2 := docs.Lookup(t.Context(), "no 3")
			count, err3 := docs.Count(t.Context())
			positions, err4 := docs.Positions(t.Context())
			n := 0
			err5 := docs.Each(t.Context(), func(redis.Document) error { n++; return nil })
			if err := errors.Join(err1, err2, err3, err4, err5); err != nil || len(loaded) != 2 || len(ids) != 1 ||
				count != 1000 || n != 1000 || len(positions) != 1 {
				t.Errorf("%d documents of 2, %d ids of 1, %d and %d documents of 1000, %d positions of 1: %v",
					len(loaded), len(ids), count, n, len(positions), err)
			}
			if err := docs.Save(t.Context(), many(9, 10)); err == nil || !strings.Contains(err.Error(), "NOPERM") {
				t.Errorf("the reader saves: %v", err)
			}
		})
	}
}

// many returns n documents.
func many(version uint64, n int) []redis.Document {
	docs := make([]redis.Document, n)
	for i := range docs {
		docs[i] = redis.Document{ID: fmt.Sprint("id ", i), Version: version, Data: []byte("x"),
			Reference: fmt.Sprint("no ", i)}
	}
	return docs
}

// Open returns an error that names the cause and what to change, without the password.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	const secret = "s3cret"
	good, plain, nodes := secure.Config(t), one.Config(t), cluster.Config(t)
	with := func(cfg redis.Config, change func(*redis.Config)) redis.Config {
		change(&cfg)
		return cfg
	}
	stranger, err := certs.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	trust, err := stranger.Trust()
	if err != nil {
		t.Fatal(err)
	}
	firstNode, _, _ := strings.Cut(nodes.Addr, ",")
	for name, c := range map[string]struct {
		cfg  redis.Config
		want string
	}{
		"no server": {redis.Config{Addr: "127.0.0.1:1", Password: secret}, "127.0.0.1:1"},
		"no node":   {redis.Config{Addr: "127.0.0.1:1,127.0.0.1:2", Password: secret}, "127.0.0.1:1"},
		"a URL": {redis.Config{Addr: "redis://user:" + secret + "@127.0.0.1:1"},
			"not of the form host:port"},
		"no port":        {redis.Config{Addr: secret}, "not of the form host:port"},
		"wrong password": {with(good, func(c *redis.Config) { c.Password = secret }), "the password is wrong"},
		"unknown user": {with(good, func(c *redis.Config) { c.Username, c.Password = "nobody", secret }),
			"the user is unknown"},
		"no password": {with(good, func(c *redis.Config) { c.Username, c.Password = "", "" }),
			"requires a password"},
		"password without a user": {with(good, func(c *redis.Config) { c.Username, c.Password = "", secret }),
			"the password is wrong"},
		"untrusted certificate": {with(good, func(c *redis.Config) { c.TLS = trust }), "not trusted"},
		"TLS to a plain server": {with(plain, func(c *redis.Config) { c.TLS, c.Password = trust, secret }),
			"the server's TLS port?"},
		"no TLS":                {with(good, func(c *redis.Config) { c.TLS = nil }), "does the server require TLS?"},
		"one node of a cluster": {with(nodes, func(c *redis.Config) { c.Addr = firstNode }), "node of a cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			client, err := redis.Open(ctx, c.cfg)
			if err == nil {
				t.Fatalf("opened (%v)", client.Close())
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: does not say %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), server.Password) {
				t.Errorf("the error contains the password: %v", err)
			}
		})
	}
}

func BenchmarkSave(b *testing.B) {
	s, err := embedded.Start(b.Context(), embedded.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := open(b, redis.Config{Addr: s.Addr()})
	docs := c.Documents("bench/v1")
	data := bytes.Repeat([]byte("x"), 1500)
	const size = 500
	n := 0
	for b.Loop() {
		batch := make([]redis.Document, size)
		for i := range batch {
			n++
			batch[i] = redis.Document{ID: fmt.Sprintf("order-%d", n), Version: 1, Data: data, Reference: fmt.Sprint(n)}
		}
		if err := docs.Save(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "docs/s")
}
