package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/millrace/millrace/internal/failpoint"
)

// recordKey returns the key of a view's record. It is outside of the view's documents, so Drop keeps
// it.
func recordKey(view string) string { return prefix + "versions:" + strings.ReplaceAll(view, "/", ":") }

// recordField is the field of the record: the embedded server has no strings, but hashes.
const recordField = "record"

// Record returns the record of a view's versions, or an empty text.
func (c *Client) Record(ctx context.Context, view string) (string, error) {
	record, err := c.rdb.HGet(ctx, recordKey(view), recordField).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	if wrongType(err) {
		return "", fmt.Errorf("redis: read the record of %s: %w: %w", view, ErrLost, err)
	}
	if err != nil {
		return "", fmt.Errorf("redis: read the record of %s: %w", view, err)
	}
	return record, nil
}

// recordScript replaces a record if it is ARGV[1], which may be empty, or ARGV[2] already, because
// the client repeats a call whose answer was lost.
const recordScript = `
local now = redis.call('HGET', KEYS[1], 'record') or ''
if now ~= ARGV[1] and now ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'record', ARGV[2])
return 1`

// SetRecord replaces the record of a view's versions, and reports whether it was from, or is to
// already.
func (c *Client) SetRecord(ctx context.Context, view, from, to string) (bool, error) {
	if err := failpoint.Hit("view." + view + ".versions.before"); err != nil {
		return false, err
	}
	done, err := c.rdb.Eval(ctx, recordScript, []string{recordKey(view)}, from, to).Int()
	if err == nil {
		err = failpoint.Hit("view." + view + ".versions.after")
	}
	if err != nil {
		return false, fmt.Errorf("redis: write the record of %s: %w", view, err)
	}
	return done == 1, nil
}
