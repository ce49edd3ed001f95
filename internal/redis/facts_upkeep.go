package redis

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// FactTrim drops values of entities of a shard.
type FactTrim struct {
	Shard int
	// UpTo is stored with the state if it is higher than the stored one, in the same step. Texts are
	// compared.
	UpTo     string
	Entities []FactTrimmed
}

// FactTrimmed is an entity of which values are dropped.
type FactTrimmed struct {
	Key string
	// Note is stored beside the key if the stored one is still Was.
	Was, Note string
	Drops     []FactDrop
}

// FactDrop is a field to delete. If it exists, the field Instead is set, which has a value of one byte.
type FactDrop struct{ Field, Instead string }

// trimFactsScript drops values.
//
//	KEYS  shard, entities, then the entities' own
//	ARGV  up to, then of each entity: key, was, note, number of drops, and of each drop: field, instead
const trimFactsScript = `
local writes = redis.call('HGET', KEYS[1], '~writes')
if not writes then
  return 'lost'
end
for k = 2, #KEYS do
  redis.call('HLEN', KEYS[k])
end
if (redis.call('HGET', KEYS[1], '~trimmed') or '') < ARGV[1] then
  redis.call('HSET', KEYS[1], '~trimmed', ARGV[1])
end
local i = 2
for k = 3, #KEYS do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i+1] then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i+2])
  end
  local count = tonumber(ARGV[i+3])
  i = i + 4
  for _ = 1, count do
    if redis.call('HDEL', KEYS[k], ARGV[i]) == 1 then
      redis.call('HSET', KEYS[k], ARGV[i+1], '-')
    end
    i = i + 2
  end
end
redis.call('HSET', KEYS[1], '~writes', string.format('%d', tonumber(writes) + 1))
return 'ok'`

// Trim drops values.
func (f *Facts) Trim(ctx context.Context, epoch string, t *FactTrim) error {
	keys := []string{f.key(epoch, "shard", t.Shard), f.key(epoch, "entities", t.Shard)}
	args := []any{t.UpTo}
	for _, e := range t.Entities {
		keys = append(keys, f.key(epoch, "entity", t.Shard)+":"+e.Key)
		args = append(args, e.Key, e.Was, e.Note, len(e.Drops))
		for _, d := range e.Drops {
			args = append(args, d.Field, d.Instead)
		}
	}
	result, err := f.rdb.Eval(ctx, trimFactsScript, keys, args...).Text()
	switch {
	case lostType(err), err == nil && result == "lost":
		return fmt.Errorf("redis: trim shard %d of %s: %w", t.Shard, f.name, ErrLost)
	case err != nil:
		return fmt.Errorf("redis: trim shard %d of %s: %w", t.Shard, f.name, err)
	}
	return nil
}

// Entities calls each with the keys of a shard's entities and their notes, some of them at a time. An
// entity that is there throughout is returned at least once.
func (f *Facts) Entities(ctx context.Context, epoch string, shard int, each func(keysAndNotes []string) error) error {
	const some = 1000
	for cursor := uint64(0); ; {
		found, next, err := f.rdb.HScan(ctx, f.key(epoch, "entities", shard), cursor, "", some).Result()
		if err != nil {
			return fmt.Errorf("redis: entities of %s: %w", f.name, err)
		}
		if err := each(found); err != nil || next == 0 {
			return err
		}
		cursor = next
	}
}

// Count returns the number of entities of each shard.
func (f *Facts) Count(ctx context.Context, epoch string) ([]int64, error) {
	answers := make([]*redis.IntCmd, FactShards)
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range answers {
			answers[n] = p.HLen(ctx, f.key(epoch, "entities", n))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: count the entities of %s: %w", f.name, err)
	}
	counts := make([]int64, FactShards)
	for n, answer := range answers {
		counts[n] = answer.Val()
	}
	return counts, nil
}
