package redis_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/embedded/redis"
)

// A script that flushes the database and then adds members keeps these members, and only these.
func TestScriptFlushesAndAdds(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	h := open(t, dir)
	do(t, h, "SADD", "set", "a", "b")
	do(t, h, "HSET", "hash", "f", "v")
	expect(t, h, "[1 [a] 1 1]", "EVAL", `
redis.call('FLUSHALL')
redis.call('SADD', 'set', 'x')
redis.call('FLUSHALL')
local added = redis.call('SADD', 'set', 'a')
return {added, redis.call('SMEMBERS', 'set'), redis.call('SISMEMBER', 'set', 'a'), redis.call('DBSIZE')}`, "0")
	for range 2 {
		expect(t, h, "[a]", "SMEMBERS", "set")
		expect(t, h, "0", "EXISTS", "hash")
		expect(t, h, "1", "DBSIZE")
		await(t, h, 3) // the layout, the number of the sets, the member
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = open(t, dir)
	}
}

// Commands that iterate over keys or entries include the script's own writes: each key once, and
// in pages that do not overlap.
func TestScriptIteratesOverItsOwnWrites(t *testing.T) {
	t.Parallel()
	h := open(t, "")
	do(t, h, "SADD", "one", "b", "d", "f")
	do(t, h, "SADD", "two", "x")
	do(t, h, "HSET", "hash", "b", "1", "d", "2")
	do(t, h, "HSET", "dropped", "f", "v")
	got := do(t, h, "EVAL", `
redis.call('SADD', 'one', 'a', 'c', 'e', 'g')
redis.call('SADD', 'two', 'y')
redis.call('SADD', 'three', 'z')
redis.call('HSET', 'hash', 'c', '3', 'a', '4')
redis.call('HDEL', 'hash', 'd')
redis.call('HSET', 'new', 'f', 'v')
redis.call('DEL', 'dropped')
local keys, cursor = {}, '0'
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1)
  cursor = page[1]
  for _, key in ipairs(page[2]) do table.insert(keys, key) end
until cursor == '0'
table.sort(keys)
return {redis.call('DBSIZE'), table.concat(keys, ' '), table.concat(redis.call('SMEMBERS', 'one'), ''),
  table.concat(redis.call('HGETALL', 'hash'), '')}`, "0").([]any)
	want := []any{int64(5), "hash new one three two", "abcdefg", "a4b1c3"}
	for i, w := range want {
		if got[i] != w {
			t.Errorf("answer %d is %v, want %v", i, got[i], w)
		}
	}
	expect(t, h, "5", "DBSIZE")
	expect(t, h, "[a b c d e f g]", "SMEMBERS", "one")
}

// A store whose number of the sets is unreadable is set aside, and the reason is readable.
func TestUnreadableSetsNumber(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	h := open(t, dir)
	do(t, h, "SADD", "set", "a")
	redis.SetSetsNumber(h, "short")
	h = open(t, dir)
	expect(t, h, "0", "DBSIZE")
	if err := h.Damage(); err == nil || strings.Contains(err.Error(), "%!") ||
		!strings.Contains(err.Error(), "5 bytes") {
		t.Errorf("the damage is reported as %v, want the number's size", err)
	}
}
