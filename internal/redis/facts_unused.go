package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Facts of a name that no process uses any more are deleted. The part of a name before the first colon
// is its family, which has a list of its names. Processes say at intervals that they use a name. One
// that comes back after its facts were deleted, at whatever moment, finds no epoch and no shard, and
// builds them again: it never reads a part of them.

// namesKey returns the key of the names of a family.
func namesKey(family string) string { return prefix + family + ":names" }

// Use says that a process uses the facts now.
func (f *Facts) Use(ctx context.Context, now time.Time) error {
	family, _, _ := strings.Cut(f.name, ":")
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, f.currentKey(), "used", now.UnixMilli())
		p.HSet(ctx, namesKey(family), f.name, "1")
		return nil
	})
	if err != nil && !wrongType(err) {
		return fmt.Errorf("redis: use %s: %w", f.name, err)
	}
	return nil
}

// retireFactsScript ends the epochs of facts that were not used since a time. It reports whether it did.
//
//	KEYS  current
//	ARGV  time in milliseconds
const retireFactsScript = `
if tonumber(redis.call('HGET', KEYS[1], 'used') or '0') >= tonumber(ARGV[1]) then
  return 0
end
for _, field in ipairs({'epoch', 'building'}) do
  local epoch = redis.call('HGET', KEYS[1], field)
  if epoch then
    redis.call('HSET', KEYS[1], '-' .. epoch, '1')
  end
end
redis.call('HDEL', KEYS[1], 'epoch', 'building', 'until')
return 1`

// forgetFactsScript deletes the hash of facts without epochs that were not used since a time. It reports
// whether it did.
//
//	KEYS  current
//	ARGV  time in milliseconds
const forgetFactsScript = `
if tonumber(redis.call('HGET', KEYS[1], 'used') or '0') >= tonumber(ARGV[1]) then
  return 0
end
if redis.call('HLEN', KEYS[1]) > redis.call('HEXISTS', KEYS[1], 'used') then
  return 0
end
redis.call('DEL', KEYS[1])
return 1`

// DeleteUnusedFacts deletes the facts of a family that no process has used since a time. It returns the
// names that it has deleted.
func (c *Client) DeleteUnusedFacts(ctx context.Context, family string, since time.Time) (deleted []string, err error) {
	names, err := c.rdb.HGetAll(ctx, namesKey(family)).Result()
	if wrongType(err) { // another program has written there
		return nil, c.rdb.Unlink(ctx, namesKey(family)).Err()
	}
	if err != nil {
		return nil, fmt.Errorf("redis: names of %s: %w", family, err)
	}
	var errs []error
	for name := range names {
		gone, err := c.Facts(name).deleteUnused(ctx, since)
		if err == nil && gone {
			err = c.rdb.HDel(ctx, namesKey(family), name).Err()
			deleted = append(deleted, name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("redis: delete %s, which is not used any more: %w", name, err))
		}
	}
	return deleted, errors.Join(errs...)
}

// deleteUnused deletes the facts if no process has used them since a time, and reports whether it did.
func (f *Facts) deleteUnused(ctx context.Context, since time.Time) (bool, error) {
	keys, at := []string{f.currentKey()}, since.UnixMilli()
	unused, err := f.rdb.Eval(ctx, retireFactsScript, keys, at).Bool()
	if err != nil || !unused {
		return false, err
	}
	if err := f.Sweep(ctx); err != nil {
		return false, err
	}
	return f.rdb.Eval(ctx, forgetFactsScript, keys, at).Bool()
}
