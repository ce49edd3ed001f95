package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servers runs a test against the embedded server and, where it is installed, a real one.
func servers(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		s, err := embedded.Start(t.Context(), embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		test(t, s.Addr())
	})
	t.Run("redis-server", func(t *testing.T) {
		t.Parallel()
		test(t, startRedis(t))
	})
}

// startRedis runs Debian's redis-server until the test ends.
func startRedis(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("MILLRACE_REQUIRE_SERVERS") != "" {
			t.Fatal("redis-server is not installed: run `make servers`")
		}
		t.Skip("redis-server is not installed: run `make servers`")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(binary, "--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--appendonly", "no")
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := net.JoinHostPort("127.0.0.1", port)
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := redis.Open(t.Context(), redis.Config{Addr: addr})
		if err == nil {
			_ = c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("redis-server does not answer: %v\n%s", err, output.String())
		}
	}
}

func open(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c, err := redis.Open(t.Context(), redis.Config{Addr: addr})
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

func TestOnlyAHigherVersionIsWritten(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, addr string) {
		docs := open(t, addr).Documents("test/v1")
		ctx := t.Context()
		// Versions that text or doubles would compare wrongly.
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
			t.Fatalf("the same version again was written: %s", got["a"].Data)
		}
	})
}

func TestConcurrentWritersLeaveTheHighestVersion(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, addr string) {
		c := open(t, addr)
		docs := c.Documents("test/v1")
		const writers, versions = 8, 40
		var g sync.WaitGroup
		for w := range writers {
			g.Go(func() {
				for v := range versions {
					version := uint64((v*7+w*11)%versions + 1)
					batch := []redis.Document{{ID: "x", Version: version, Data: fmt.Append(nil, version)}, {ID: "y", Version: version, Data: fmt.Append(nil, version)}}
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

// The documents behave as a map from id to the highest version ever written, whatever bytes they hold.
func TestDocumentsAreAMap(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, addr string) {
		c := open(t, addr)
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			docs := c.Documents(fmt.Sprintf("map/v%d", n))
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

func TestLookup(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, addr string) {
		docs := open(t, addr).Documents("test/v1")
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

func TestPositionsMoveFromWhereTheyAre(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, addr string) {
		docs := open(t, addr).Documents("test/v1")
		ctx := t.Context()
		move := func(wantStray string, moves ...redis.Move) {
			t.Helper()
			stray, err := docs.MovePositions(ctx, moves)
			if err != nil || stray != wantStray {
				t.Fatalf("%v: %q, %v, want %q", moves, stray, err, wantStray)
			}
		}
		holds := func(want map[string]string) {
			t.Helper()
			if got, err := docs.Positions(ctx); err != nil || !maps.Equal(got, want) {
				t.Fatalf("positions %v, %v, want %v", got, err, want)
			}
		}
		move("", redis.Move{"t/0", "", "5"}, redis.Move{"t/1", "", "7"})
		move("", redis.Move{"t/0", "", "5"}) // the answer was lost
		move("t/1", redis.Move{"t/0", "5", "6"}, redis.Move{"t/1", "6", "8"})
		holds(map[string]string{"t/0": "5", "t/1": "7"})
		move("t/2", redis.Move{"t/2", "3", "4"}) // was flushed
		move("", redis.Move{"t/0", "5", ""})
		move("", redis.Move{"t/0", "", "1"})
		holds(map[string]string{"t/0": "1", "t/1": "7"})
	})
}

func TestOpenSaysWhereNobodyAnswers(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := redis.Open(ctx, redis.Config{Addr: "127.0.0.1:1"}); err == nil || !bytes.Contains([]byte(err.Error()), []byte("127.0.0.1:1")) {
		t.Fatalf("got %v", err)
	}
	if _, err := redis.Open(ctx, redis.Config{Addr: "redis://%zz"}); err == nil {
		t.Fatal("took a malformed URL")
	}
}

func BenchmarkSave(b *testing.B) {
	s, err := embedded.Start(b.Context(), embedded.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := open(b, s.Addr())
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
