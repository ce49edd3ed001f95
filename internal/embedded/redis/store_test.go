package redis_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/polltest"
)

// open opens a store that is closed at the end of the test. An empty dir keeps it in memory.
func open(t testing.TB, dir string) redis.Store {
	t.Helper()
	h, err := redis.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// do runs a command that must succeed.
func do(t testing.TB, h redis.Store, words ...string) any {
	t.Helper()
	answer, err := h.Do(words...)
	if err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	return answer
}

// expect compares the printed answer of a command.
func expect(t testing.TB, h redis.Store, want string, words ...string) {
	t.Helper()
	if got := fmt.Sprint(do(t, h, words...)); got != want {
		t.Errorf("%q: %s, want %s", words, got, want)
	}
}

// Every acknowledged change is present after a restart, with the counts of the hashes.
func TestAcknowledgedWritesSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	h := open(t, dir)
	do(t, h, "HSET", "docs", "a", "1", "b", "2", "", "mark")
	do(t, h, "HSET", "docs", "a", "3")
	do(t, h, "HDEL", "docs", "b")
	do(t, h, "SADD", "ref:x", "a", "b")
	do(t, h, "EVAL", "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return redis.call('HLEN', KEYS[1])", "1", "other",
		"f", "v")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir)
	expect(t, h, "[ mark a 3]", "HGETALL", "docs")
	expect(t, h, "2", "HLEN", "docs")
	expect(t, h, "[a b]", "SMEMBERS", "ref:x")
	expect(t, h, "v", "HGET", "other", "f")
	expect(t, h, "3", "DBSIZE")
}

// A script is applied completely or not at all, and sees its own writes.
func TestScriptIsATransaction(t *testing.T) {
	t.Parallel()
	h := open(t, "")
	_, err := h.Do("EVAL", "redis.call('HSET', KEYS[1], 'a', '1') redis.call('SADD', 's', 'm') error('no')", "1",
		"docs")
	if !redis.IsReplyError(err) {
		t.Fatalf("a script that fails: %v", err)
	}
	expect(t, h, "0", "EXISTS", "docs", "s")
	expect(t, h, "[1 <nil> 2]", "EVAL", `
redis.call('HSET', KEYS[1], 'a', '1')
local first = redis.call('HGET', KEYS[1], 'a')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'b', '1', 'c', '2')
return {first, redis.call('HGET', KEYS[1], 'a'), redis.call('HLEN', KEYS[1])}`, "1", "docs")
	expect(t, h, "[b 1 c 2]", "HGETALL", "docs")
}

// A script that does not end is aborted, and one that accesses the machine's files is refused.
func TestScriptsAreBounded(t *testing.T) {
	t.Parallel()
	h := open(t, "")
	for _, script := range []string{"while true do end", "return io.open('/etc/passwd')", "return os.getenv('HOME')",
		"dofile('/etc/passwd')", "return redis.call('EVAL', 'return 1', 0)", "return (", "redis.call()",
		"redis.call({})"} {
		if _, err := h.Do("EVAL", script, "0"); !redis.IsReplyError(err) {
			t.Errorf("%s: %v", script, err)
		}
	}
	expect(t, h, "PONG", "PING")
}

// Commands with a wrong number or type of arguments return an error and change nothing.
func TestInvalidCommandsAreRejected(t *testing.T) {
	t.Parallel()
	h := open(t, "")
	do(t, h, "HSET", "hash", "f", "v")
	do(t, h, "SADD", "set", "m")
	for _, words := range [][]string{
		{"HSET", "set", "f", "v"}, {"SADD", "hash", "m"}, {"GET", "hash"}, {"HGET", "hash"},
		{"HGET", "hash", "f", "x"}, {"HSET", "hash", "f"},
		{"HSCAN", "hash", "x"}, {"HSCAN", "hash", "0", "COUNT", "0"}, {"HSCAN", "hash", "0", "COUNT"},
		{"HSCAN", "hash", "7"}, {"SCAN", "0", "SORT", "x"},
		{"SELECT", "1"}, {"EVAL", "return 1"}, {"EVAL", "return 1", "3", "a"},
	} {
		if _, err := h.Do(words...); !redis.IsReplyError(err) {
			t.Errorf("%q: %v", words, err)
		}
	}
	expect(t, h, "[f v]", "HGETALL", "hash")
}

// scanAll reads a scan to its end.
func scanAll(t testing.TB, h redis.Store, words ...string) (all []string) {
	t.Helper()
	at := slices.Index(words, "CURSOR")
	for cursor := "0"; ; {
		call := slices.Clone(words)
		call[at] = cursor
		answer := do(t, h, call...).([]any)
		for _, each := range answer[1].([]any) {
			all = append(all, each.(string))
		}
		if cursor = answer[0].(string); cursor == "0" {
			return all
		}
	}
}

// A scan returns each key or field once, whatever its page size.
func TestScansReturnEachKeyOnce(t *testing.T) {
	t.Parallel()
	h := open(t, "")
	const n = 57
	do(t, h, "HSET", "docs", "", "mark")
	for i := range n {
		do(t, h, "HSET", "docs", fmt.Sprint("field ", i), "v")
		do(t, h, "SADD", fmt.Sprint("ref:", i), "one", "two")
	}
	do(t, h, "SADD", "ref:"+strings.Repeat("long", 100), "one")
	for _, count := range []string{"1", "7", "1000"} {
		if got := scanAll(t, h, "HSCAN", "docs", "CURSOR", "COUNT", count); len(got) != 2*(n+1) {
			t.Errorf("HSCAN by %s: %d words, want %d", count, len(got), 2*(n+1))
		}
		got := scanAll(t, h, "SCAN", "CURSOR", "MATCH", "ref:*", "COUNT", count)
		slices.Sort(got)
		if len(slices.Compact(got)) != n+1 || len(got) != n+1 {
			t.Errorf("SCAN by %s: %d keys, want %d", count, len(got), n+1)
		}
	}
	if got := scanAll(t, h, "SCAN", "CURSOR", "MATCH", "d?c[s]"); !slices.Equal(got, []string{"docs"}) {
		t.Errorf("SCAN for one: %q", got)
	}
}

// Dropped data is deleted from disk, too, and the data that replaces it is not affected.
func TestDroppedDataIsSwept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	h := open(t, dir)
	fill := []string{"HSET", "docs"}
	for i := range 12_000 {
		fill = append(fill, strconv.Itoa(i), "v")
	}
	do(t, h, fill...)
	do(t, h, "SADD", "ref", "a")
	expect(t, h, "1", "DEL", "docs")
	do(t, h, "HSET", "docs", "new", "v")
	if err := h.Close(); err != nil { // perhaps during the sweep
		t.Fatal(err)
	}
	h = open(t, dir)
	await(t, h, 5) // the layout, the number of the sets, the hash, its field, the member
	expect(t, h, "[new v]", "HGETALL", "docs")
	expect(t, h, "[a]", "SMEMBERS", "ref")
	do(t, h, "FLUSHALL")
	expect(t, h, "0", "DBSIZE")
	do(t, h, "SADD", "ref", "b")
	expect(t, h, "[b]", "SMEMBERS", "ref")
	await(t, h, 3)
}

// await blocks until the given number of entries remains.
func await(t *testing.T, h redis.Store, want int) {
	t.Helper()
	polltest.Until(t, fmt.Sprintf("%d entries", want), func() bool {
		got, err := h.Entries()
		if err != nil {
			t.Fatal(err)
		}
		return got == want
	})
}

// TestRandomHistories compares random histories, including restarts, with maps.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "millrace-redis-") //nolint:usetesting // rapid.T has no TempDir
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		hashes, sets := map[string]map[string]string{}, map[string]map[string]bool{}
		var h redis.Store
		reopen := func() {
			if h, err = redis.Open(filepath.Join(dir, "redis"), slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
		}
		reopen()
		defer func() { _ = h.Close() }()
		must := func(words ...string) any {
			answer, err := h.Do(words...)
			if err != nil {
				t.Fatalf("%q: %v", words, err)
			}
			return answer
		}
		names := rapid.SampledFrom([]string{"", "a", "b", "ab", "\xff", "a\x00"})
		key := rapid.SampledFrom([]string{"x", "y", ""})
		t.Repeat(map[string]func(*rapid.T){
			"hset": func(t *rapid.T) {
				k, f, v := "h"+key.Draw(t, "key"), names.Draw(t, "field"), names.Draw(t, "value")
				if hashes[k] == nil {
					hashes[k] = map[string]string{}
				}
				hashes[k][f] = v
				must("HSET", k, f, v)
			},
			"hdel": func(t *rapid.T) {
				k, f := "h"+key.Draw(t, "key"), names.Draw(t, "field")
				_, found := hashes[k][f]
				if delete(hashes[k], f); len(hashes[k]) == 0 {
					delete(hashes, k)
				}
				if got := must("HDEL", k, f); (got == int64(1)) != found {
					t.Fatalf("HDEL: %v", got)
				}
			},
			"sadd": func(t *rapid.T) {
				k, m := "s"+key.Draw(t, "key"), names.Draw(t, "member")
				if sets[k] == nil {
					sets[k] = map[string]bool{}
				}
				sets[k][m] = true
				must("SADD", k, m)
			},
			"del": func(t *rapid.T) {
				k := rapid.SampledFrom([]string{"h", "s"}).Draw(t, "kind") + key.Draw(t, "key")
				delete(hashes, k)
				delete(sets, k)
				must("DEL", k)
			},
			"restart": func(t *rapid.T) {
				if err := h.Close(); err != nil {
					t.Fatal(err)
				}
				reopen()
			},
			"flush": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "seldom") == 0 {
					clear(hashes)
					clear(sets)
					must("FLUSHALL")
				}
			},
			"": func(t *rapid.T) {
				for _, k := range []string{"hx", "hy", "h"} {
					got := map[string]string{}
					words := must("HGETALL", k).([]any)
					for i := 0; i < len(words); i += 2 {
						got[words[i].(string)] = words[i+1].(string)
					}
					if !maps.Equal(got, hashes[k]) || must("HLEN", k) != int64(len(hashes[k])) {
						t.Fatalf("%s: %v, want %v", k, got, hashes[k])
					}
				}
				for _, k := range []string{"sx", "sy", "s"} {
					members := must("SMEMBERS", k).([]any)
					for _, m := range members {
						if !sets[k][m.(string)] {
							t.Fatalf("%s has %q", k, m)
						}
					}
					if len(members) != len(sets[k]) {
						t.Fatalf("%s: %q, want %v", k, members, sets[k])
					}
				}
				if got := must("DBSIZE"); got != int64(len(hashes)+len(sets)) {
					t.Fatalf("%v keys, want %d", got, len(hashes)+len(sets))
				}
			},
		})
	})
}

// round writes what a view writes at a time: documents, and then the position after them.
func round(h redis.Store, n int) error {
	id := strconv.Itoa(n % 500)
	_, err := h.Do("EVAL", `
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1]) end
return 0`, "1", "docs", id, strconv.Itoa(n)+strings.Repeat(" some data that does not matter", 20), id+" again", strconv.Itoa(n))
	if err == nil {
		_, err = h.Do("SADD", "ref:"+id, id)
	}
	if err == nil {
		_, err = h.Do("HSET", "positions", "t/0", strconv.Itoa(n))
	}
	return err
}

// checkRounds checks that documents are not behind the position, and returns the position, or 0 if
// there is none. Damage may be noticed during the check. Then the store is empty.
func checkRounds(t testing.TB, h redis.Store) int {
	t.Helper()
	gone := func() bool { return do(t, h, "HGET", "positions", "t/0") == nil }
	at, _ := do(t, h, "HGET", "positions", "t/0").(string)
	position, _ := strconv.Atoi(at)
	for n := max(1, position-499); n <= position; n++ {
		id := strconv.Itoa(n % 500)
		have, _ := do(t, h, "HGET", "docs", id).(string)
		again, _ := do(t, h, "HGET", "docs", id+" again").(string)
		version, _ := strconv.Atoi(strings.SplitN(have, " ", 2)[0])
		if version < n || again != strconv.Itoa(version) {
			if gone() {
				return 0
			}
			t.Fatalf("position %d, and document %s is %.10q and %q: want both at %d or later", position, id, have,
				again, n)
		}
		if do(t, h, "SISMEMBER", "ref:"+id, id) != int64(1) {
			if gone() {
				return 0
			}
			t.Fatalf("position %d, and reference %s is gone", position, id)
		}
	}
	return position
}

// Regardless of the damage to a file, a reader sees the state at some moment, or an empty store,
// and the store accepts writes. Each kind of damage is tried on each file, while the store is
// closed and while it is open.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "redis")
	h := open(t, whole)
	const rounds = 1500
	for n := 1; n <= rounds; n++ {
		if n == rounds*2/3 {
			if err := h.Compact(); err != nil {
				t.Fatal(err)
			}
		}
		if err := round(h, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(content []byte) []byte{
		"deleted":                      func([]byte) []byte { return nil },
		"emptied":                      func([]byte) []byte { return []byte{} },
		"truncated to half":            func(c []byte) []byte { return c[:len(c)/2] },
		"the last byte missing":        func(c []byte) []byte { return c[:max(0, len(c)-1)] },
		"zeroes in the middle":         func(c []byte) []byte { clear(c[len(c)/3 : len(c)*2/3]); return c },
		"zeroes at the end":            func(c []byte) []byte { clear(c[len(c)-len(c)/10:]); return c },
		"a bit flipped near the start": func(c []byte) []byte { c[len(c)/100] ^= 4; return c },
		"a bit flipped in the middle":  func(c []byte) []byte { c[len(c)/2] ^= 1; return c },
		"a bit flipped near the end":   func(c []byte) []byte { c[len(c)-len(c)/50-1] ^= 64; return c },
		"another file in its place":    func([]byte) []byte { return []byte("SQLite format 3\x00 and more") },
		"other bytes at its end":       func(c []byte) []byte { return append(c, "and more"...) },
		"its beginning twice":          func(c []byte) []byte { return append(c[:len(c)/2:len(c)/2], c...) },
		"every 4096th byte changed":    func(c []byte) []byte { return flipEvery(c, 4096) },
		"every byte changed":           func(c []byte) []byte { return flipEvery(c, 1) },
		"zeroes in the first block":    func(c []byte) []byte { clear(c[:min(len(c), 32<<10)]); return c },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files, err := os.ReadDir(whole)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if file.Name() == "LOCK" || file.Name() == "LOG" || file.Name() == "LOG.old" {
					continue
				}
				for _, running := range []bool{false, true} {
					dir := filepath.Join(t.TempDir(), "redis")
					if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
						t.Fatal(err)
					}
					var h redis.Store
					if running {
						h = open(t, dir)
					}
					damageFile(t, filepath.Join(dir, file.Name()), damage)
					if !running {
						h = open(t, dir)
					}
					at := checkRounds(t, h)
					if at != 0 && at < rounds/3 {
						t.Errorf("%s, running %v: position %d was not the position at any stop", file.Name(), running,
							at)
					}
					for n := at + 1; n < at+20; n++ {
						if err := round(h, n); err != nil {
							t.Fatalf("%s, running %v: %v", file.Name(), running, err)
						}
					}
					if at > 0 { // otherwise it has started empty, and is not filled yet
						checkRounds(t, h)
					}
				}
			}
		})
	}
}

// flipEvery changes every step-th byte.
func flipEvery(c []byte, step int) []byte {
	for i := 0; i < len(c); i += step {
		c[i] ^= 0xa5
	}
	return c
}

// damageFile rewrites a file in place with changed content, or removes it if damage returns nil.
func damageFile(t *testing.T, name string, damage func([]byte) []byte) {
	t.Helper()
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) { // it was replaced when the store was opened
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if content = damage(content); content == nil {
		err = os.Remove(name)
	} else {
		err = os.WriteFile(name, content, 0o600) // in place: a store that has it open sees it
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A write that finds damage while it checks the key's type sets the files aside, and is then
// applied to the empty store.
func TestWriteFindsDamage(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	h := open(t, dir)
	for n := 1; n <= 100; n++ {
		if err := round(h, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Compact(); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir)
	tables, err := filepath.Glob(filepath.Join(dir, "*.ldb"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables %v, %v", tables, err)
	}
	for _, name := range tables {
		damageFile(t, name, func(c []byte) []byte { return flipEvery(c, 1) })
	}
	do(t, h, "HSET", "ref:zz", "f", "v") // between the keys of the damaged table
	expect(t, h, "1", "DBSIZE")
	if h.Damage() == nil {
		t.Error("the damage is not reported")
	}
}

// A folder of another version, or of another program, is set aside unchanged.
func TestUnknownFormatsAreSetAside(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(t *testing.T, dir string){
		"another version": func(t *testing.T, dir string) {
			h := open(t, dir)
			do(t, h, "HSET", "docs", "a", "1")
			redis.SetLayout(h, "99")
		},
		"no version": func(t *testing.T, dir string) {
			h := open(t, dir)
			redis.SetLayout(h, "")
		},
		"an older file of the same name": func(t *testing.T, dir string) {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "CURRENT"), []byte("dump.rdb\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "redis")
			put(t, dir)
			h := open(t, dir)
			expect(t, h, "0", "DBSIZE")
			do(t, h, "HSET", "docs", "b", "2")
			expect(t, h, "[b 2]", "HGETALL", "docs")
			if _, err := os.Stat(dir + ".damaged"); err != nil {
				t.Errorf("the old files are gone: %v", err)
			}
		})
	}
}
