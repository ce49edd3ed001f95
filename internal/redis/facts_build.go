package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A new epoch is built before it is current: facts of records that the log does not have any more are
// added first. Nobody reads or writes it meanwhile but its builder. The hash of the current epoch says
// who may build:
//
//	epoch       the current epoch; missing while there is none
//	building    the epoch that is being built, and until when its builder has the right to do so
//	until       (milliseconds)
//	-EPOCH      an epoch that was replaced, or whose builder has gone; its keys are to be deleted
//	used        when a process last said that it uses the facts (milliseconds)
//
// If a builder dies or sleeps, another one builds another epoch after that time. An epoch that was given
// up never becomes current, and is without shards, so that nothing can be added to it.

var (
	// ErrFactsBuilding means that another process builds an epoch.
	ErrFactsBuilding = errors.New("another process is restoring the facts in redis")
	// ErrFactsReplaced means that another epoch than the expected one is current.
	ErrFactsReplaced = errors.New("another process has restored the facts in redis")
)

// FactBuild is an epoch that is being built.
type FactBuild struct {
	facts  *Facts
	epoch  string
	writes [FactShards]int64
}

// takeFactsScript ends an epoch and begins to build another one. It returns "ok", "busy" or "replaced".
// It can be repeated, because the client does so.
//
//	KEYS  current
//	ARGV  replaced epoch, new epoch, now, until
const takeFactsScript = `
local building = redis.call('HGET', KEYS[1], 'building') or ''
if building == ARGV[2] then
  return 'ok'
end
if (redis.call('HGET', KEYS[1], 'epoch') or '') ~= ARGV[1] then
  return 'replaced'
end
if building ~= '' then
  if tonumber(redis.call('HGET', KEYS[1], 'until') or '0') > tonumber(ARGV[3]) then
    return 'busy'
  end
  redis.call('HSET', KEYS[1], '-' .. building, '1')
end
if ARGV[1] ~= '' then
  redis.call('HDEL', KEYS[1], 'epoch')
  redis.call('HSET', KEYS[1], '-' .. ARGV[1], '1')
end
redis.call('HSET', KEYS[1], 'building', ARGV[2], 'until', ARGV[4])
return 'ok'`

// Build ends the epoch replaced, which is empty if there is none, and begins to build another one. Until
// it is finished, there is none. The right to build ends at a time, and Keep renews it; times are those
// of the callers' clocks. Build returns ErrFactsBuilding or ErrFactsReplaced if another process was
// earlier.
func (f *Facts) Build(ctx context.Context, replaced string, now, until time.Time) (*FactBuild, error) {
	var number [8]byte
	_, _ = rand.Read(number[:]) // never fails
	b := &FactBuild{facts: f, epoch: hex.EncodeToString(number[:])}
	if kind, err := f.rdb.Type(ctx, f.currentKey()).Result(); err == nil && kind != "none" && kind != "hash" {
		// Another program has written there.
		if err := f.rdb.Unlink(ctx, f.currentKey()).Err(); err != nil {
			return nil, fmt.Errorf("redis: build %s: %w", f.name, err)
		}
	}
	// The shards exist before others know of the epoch: once its keys are deleted, they stay deleted.
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range FactShards {
			p.HSet(ctx, f.key(b.epoch, "shard", n), factWrites, "0")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: build %s: %w", f.name, err)
	}
	answer, err := f.rdb.Eval(ctx, takeFactsScript, []string{f.currentKey()}, replaced, b.epoch, now.UnixMilli(),
		until.UnixMilli()).Text()
	switch {
	case err != nil:
	case answer == "busy":
		err = ErrFactsBuilding
	case answer == "replaced":
		err = ErrFactsReplaced
	default:
		return b, nil
	}
	return nil, errors.Join(fmt.Errorf("redis: build %s: %w", f.name, err), f.dropShards(ctx, b.epoch))
}

// keepFactsScript renews the right to build an epoch.
//
//	KEYS  current
//	ARGV  epoch, until
const keepFactsScript = `
if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'until', ARGV[2])
return 1`

// Keep renews the right to build. It returns ErrLost if another process has it.
func (b *FactBuild) Keep(ctx context.Context, until time.Time) error {
	kept, err := b.facts.rdb.Eval(ctx, keepFactsScript, []string{b.facts.currentKey()}, b.epoch, until.UnixMilli()).Int()
	if err == nil && kept == 0 {
		err = ErrLost
	}
	if err != nil {
		return fmt.Errorf("redis: build %s: %w", b.facts.name, err)
	}
	return nil
}

// addFactsScript adds to a shard that is being built. The count of writes makes it harmless to repeat.
//
//	KEYS  shard, entities, then the entities' own
//	ARGV  count of writes before, the same after, number of positions, then of each: partition, position;
//	      then the entities
const addFactsScript = `
local writes = redis.call('HGET', KEYS[1], '~writes')
if not writes then
  return 'lost'
end
if writes == ARGV[2] then
  return 'ok'
end
if writes ~= ARGV[1] then
  return 'lost'
end
local from, i = '', 4 + 2 * tonumber(ARGV[3])` + writeFactsLua + `
for p = 4, 2 + 2 * tonumber(ARGV[3]), 2 do
  redis.call('HSET', KEYS[1], ARGV[p], ARGV[p+1])
end
redis.call('HSET', KEYS[1], '~writes', ARGV[2])
return 'ok'`

// Add adds values to shards, in the order of the log, and positions to all of them; see FactChange. It
// returns ErrLost if another process builds, or if Redis has lost some of it. After an error, the build
// can only be abandoned.
func (b *FactBuild) Add(ctx context.Context, shards *[FactShards][]FactEntity, positions map[string]string) error {
	answers := make([]*redis.Cmd, FactShards)
	_, err := b.facts.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n, entities := range shards {
			if len(entities) == 0 && len(positions) == 0 {
				continue
			}
			args := []any{b.writes[n], b.writes[n] + 1, len(positions)}
			b.writes[n]++
			for partition, position := range positions {
				args = append(args, partition, position)
			}
			keys, args := b.facts.writes(b.epoch, n, entities, args...)
			answers[n] = p.Eval(ctx, addFactsScript, keys, args...)
		}
		return nil
	})
	return b.facts.written("build", "", answers, err)
}

// Count returns the number of entities.
func (b *FactBuild) Count(ctx context.Context) (total int64, err error) {
	counts, err := b.facts.Count(ctx, b.epoch)
	for _, n := range counts {
		total += n
	}
	return total, err
}

// finishFactsScript makes an epoch current that is being built, and reports whether it is. It can be
// repeated.
//
//	KEYS  current
//	ARGV  epoch
const finishFactsScript = `
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  return 1
end
if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'building', 'until')
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return 1`

// Finish makes the epoch current and returns it. It returns ErrLost if another process builds.
func (b *FactBuild) Finish(ctx context.Context) (epoch string, err error) {
	mine, err := b.facts.rdb.Eval(ctx, finishFactsScript, []string{b.facts.currentKey()}, b.epoch).Int()
	if err == nil && mine == 0 {
		err = ErrLost
	}
	if err != nil {
		return "", fmt.Errorf("redis: finish %s: %w", b.facts.name, err)
	}
	return b.epoch, nil
}

// abandonFactsScript gives up an epoch, unless it has become current.
//
//	KEYS  current
//	ARGV  epoch
const abandonFactsScript = `
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  return
end
if redis.call('HGET', KEYS[1], 'building') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'building', 'until')
end
redis.call('HSET', KEYS[1], '-' .. ARGV[1], '1')`

// Abandon gives up the epoch, so that another process can build at once. Sweep deletes its keys.
func (b *FactBuild) Abandon(ctx context.Context) error {
	err := b.facts.rdb.Eval(ctx, abandonFactsScript, []string{b.facts.currentKey()}, b.epoch).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("redis: abandon a build of %s: %w", b.facts.name, err)
	}
	return nil
}

// Sweep deletes the keys of epochs that were replaced or given up. Several processes may do it.
func (f *Facts) Sweep(ctx context.Context) error {
	fields, err := f.rdb.HGetAll(ctx, f.currentKey()).Result()
	if err != nil {
		return fmt.Errorf("redis: sweep %s: %w", f.name, err)
	}
	for field := range fields {
		epoch, unused := strings.CutPrefix(field, "-")
		if !unused {
			continue
		}
		if err := f.drop(ctx, epoch); err != nil {
			return err
		}
		if err := f.rdb.HDel(ctx, f.currentKey(), field).Err(); err != nil {
			return fmt.Errorf("redis: sweep %s: %w", f.name, err)
		}
	}
	return nil
}

// drop deletes an epoch: its shards first, so that its readers and writers find none.
func (f *Facts) drop(ctx context.Context, epoch string) error {
	if err := f.dropShards(ctx, epoch); err != nil {
		return err
	}
	return unlinkAll(ctx, f.rdb, prefix+f.name+":"+epoch+":*")
}

// dropShards deletes the shards of an epoch.
func (f *Facts) dropShards(ctx context.Context, epoch string) error {
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range FactShards {
			p.Unlink(ctx, f.key(epoch, "shard", n))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("redis: delete an epoch of %s: %w", f.name, err)
	}
	return nil
}
