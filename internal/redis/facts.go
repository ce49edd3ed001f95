package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Facts is small values of many entities, written by several processes that share the partitions of
// topics, and read together with the positions that they reflect:
//
//	millrace:FAMILY:names                       hash: NAME → "1"; see facts_unused.go
//	millrace:NAME:current:{NAME:00}             hash: "epoch" → the current epoch; see facts_build.go
//	millrace:NAME:EPOCH:shard:{NAME:07}         hash: "~writes" → count, position by topic and partition
//	millrace:NAME:EPOCH:entities:{NAME:07}      hash: entity → its note
//	millrace:NAME:EPOCH:entity:{NAME:07}:KEY    hash: field → value
//
// An entity belongs to one of FactShards shards. The keys of a shard are in one slot, so one script
// changes values and position together, and one script reads them together. Every shard has the
// positions of all partitions.
//
// A change is applied to a shard only if it follows the shard's position. So a retry, and a writer
// that does not know yet that its partition is another one's, change nothing.
//
// Loss: values and positions of a shard are on one node, so an older copy of it is an earlier state
// of both, and the next change does not follow it. A shard without its hash is lost. Then a writer
// builds a new epoch, which has keys of its own. Writers and readers of the earlier epoch find no
// shard there any more.
type Facts struct {
	rdb  redis.UniversalClient
	name string
}

// FactShards is the number of shards. Each change visits all of them.
const FactShards = 16

// Facts returns the facts of a name. It does not contact the server.
func (c *Client) Facts(name string) *Facts { return &Facts{c.rdb, name} }

// tag returns the part of keys that decides about the slot.
func (f *Facts) tag(shard int) string { return fmt.Sprintf("{%s:%02x}", f.name, shard) }

func (f *Facts) currentKey() string { return prefix + f.name + ":current:" + f.tag(0) }

func (f *Facts) key(epoch, kind string, shard int) string {
	return prefix + f.name + ":" + epoch + ":" + kind + ":" + f.tag(shard)
}

// FactShard is the state of a shard.
type FactShard struct {
	Writes    int64             // how often the shard was changed
	Positions map[string]string // by partition; see FactChange.Partition
	Trimmed   string            // see FactTrim.UpTo; empty if nothing was trimmed
}

// Fields of a shard's hash that are not positions.
const (
	factWrites  = "~writes"
	factTrimmed = "~trimmed"
)

// Epoch returns the current epoch, or ErrLost if there is none.
func (f *Facts) Epoch(ctx context.Context) (string, error) {
	epoch, err := f.rdb.HGet(ctx, f.currentKey(), "epoch").Result()
	if errors.Is(err, redis.Nil) || wrongType(err) {
		return "", fmt.Errorf("redis: %s: %w", f.name, ErrLost)
	}
	if err != nil {
		return "", fmt.Errorf("redis: epoch of %s: %w", f.name, err)
	}
	return epoch, nil
}

// Shards returns the states of all shards of an epoch. It returns ErrLost if one does not exist.
func (f *Facts) Shards(ctx context.Context, epoch string) ([]FactShard, error) {
	answers := make([]*redis.MapStringStringCmd, FactShards)
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range answers {
			answers[n] = p.HGetAll(ctx, f.key(epoch, "shard", n))
		}
		return nil
	})
	if err != nil && !wrongType(err) {
		return nil, fmt.Errorf("redis: positions of %s: %w", f.name, err)
	}
	shards := make([]FactShard, FactShards)
	for n, answer := range answers {
		var ok bool
		if shards[n], ok = parseFactShard(answer.Val()); !ok {
			return nil, fmt.Errorf("redis: shard %d of %s: %w", n, f.name, ErrLost)
		}
	}
	return shards, nil
}

// parseFactShard returns the state in a shard's hash. ok is false if it is missing or damaged.
func parseFactShard(fields map[string]string) (s FactShard, ok bool) {
	s.Positions = make(map[string]string, len(fields))
	for field, value := range fields {
		switch field {
		case factWrites:
			n, err := strconv.ParseInt(value, 10, 64)
			s.Writes, ok = n, err == nil
		case factTrimmed:
			s.Trimmed = value
		default:
			s.Positions[field] = value
		}
	}
	return s, ok
}

// FactPosition returns the stored form of a position: the offset comes first and has a fixed length, so
// that positions are compared as texts. Lua's numbers would lose digits.
func FactPosition(next int64, rest string) string {
	return fmt.Sprintf("%0*d ", offsetDigits, next) + rest
}

// ParseFactPosition returns the parts of FactPosition.
func ParseFactPosition(stored string) (next int64, rest string, err error) {
	offset, rest, _ := strings.Cut(stored, " ")
	if len(offset) != offsetDigits {
		return 0, "", fmt.Errorf("position %q: the offset does not have %d digits", stored, offsetDigits)
	}
	n, err := strconv.ParseUint(offset, 10, 63)
	if err != nil {
		return 0, "", fmt.Errorf("position %q: %w", stored, err)
	}
	return int64(n), rest, nil
}

const offsetDigits = 19

// FactChange is the values that a range of offsets of a partition has written, in all shards.
type FactChange struct {
	Partition string // "topic/0"; must not begin with "~"
	First     int64  // first offset of the range
	After     string // the position after it, from FactPosition
	// Begins says that the writer knows that no position is stored in some shard, and that the range is
	// the first one. Otherwise a shard without a position has lost it.
	Begins bool
	Shards [FactShards][]FactEntity
}

// FactEntity is the values of an entity.
type FactEntity struct {
	Key    string
	Values []FactValue // those of one field in the order of their offsets
	// Note is stored beside the key if it is lower than the stored one, or if none is stored. Empty
	// means none.
	Note string
}

// FactValue is a value that is to be set, or deleted if it is empty.
type FactValue struct {
	Offset int64
	Field  string
	Value  string
	Also   string // another field, which is deleted in any case; may be empty
}

// ErrFactGap means that a change does not follow a shard's position: the shard has lost the latest
// changes, or another process has read the positions.
var ErrFactGap = errors.New("redis does not have the changes before this one")

// writeFactsLua checks the keys from KEYS[2] on, so that one of a wrong type raises an error before
// anything is written. Then it writes the values from the offset `from` on. Its arguments begin at
// ARGV[i]: of each entity key, note, number of values, and of each value: offset, field, value, also.
const writeFactsLua = `
for k = 2, #KEYS do
  redis.call('HLEN', KEYS[k])
end
for k = 3, #KEYS do
  local key, note, count = ARGV[i], ARGV[i+1], tonumber(ARGV[i+2])
  local set, deleted = false, false
  i = i + 3
  for _ = 1, count do
    if ARGV[i] >= from then
      if ARGV[i+2] == '' then
        redis.call('HDEL', KEYS[k], ARGV[i+1])
        deleted = true
      else
        redis.call('HSET', KEYS[k], ARGV[i+1], ARGV[i+2])
        set = true
      end
      if ARGV[i+3] ~= '' then
        redis.call('HDEL', KEYS[k], ARGV[i+3])
      end
    end
    i = i + 4
  end
  if deleted and redis.call('HLEN', KEYS[k]) == 0 then
    redis.call('HDEL', KEYS[2], key)
  elseif set then
    local old = redis.call('HGET', KEYS[2], key)
    if not old or note ~= '' and (old == '' or note < old) then
      redis.call('HSET', KEYS[2], key, note)
    end
  end
end`

// applyFactsScript applies a change to a shard: the part that the shard does not have. It returns "ok",
// "lost" or "gap".
//
//	KEYS  shard, entities, then the entities' own
//	ARGV  partition, first, after, begins, then the entities
const applyFactsScript = `
local writes = redis.call('HGET', KEYS[1], '~writes')
if not writes then
  return 'lost'
end
local have = redis.call('HGET', KEYS[1], ARGV[1])
local from = ''
if have then
  from = string.sub(have, 1, 19)
  if from < ARGV[2] then
    return 'gap'
  end
  if from >= string.sub(ARGV[3], 1, 19) then
    return 'ok'
  end
elseif ARGV[4] ~= '1' then
  return 'gap'
end
local i = 5` + writeFactsLua + `
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], '~writes', string.format('%d', tonumber(writes) + 1))
return 'ok'`

// Apply applies a change to all shards in one round trip. Each shard applies it as a whole or not at
// all. After ErrLost, ErrFactGap or another error, some shards may have it and others not; it may be
// repeated.
func (f *Facts) Apply(ctx context.Context, epoch string, c *FactChange) error {
	answers := make([]*redis.Cmd, FactShards)
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n, entities := range c.Shards {
			first := fmt.Sprintf("%0*d", offsetDigits, c.First)
			keys, args := f.writes(epoch, n, entities, c.Partition, first, c.After, c.Begins)
			answers[n] = p.Eval(ctx, applyFactsScript, keys, args...)
		}
		return nil
	})
	return f.written("apply to", c.Partition, answers, err)
}

// writes returns the keys and arguments of a script with writeFactsLua.
func (f *Facts) writes(epoch string, shard int, entities []FactEntity, first ...any) (keys []string, args []any) {
	keys = append(make([]string, 0, 2+len(entities)), f.key(epoch, "shard", shard), f.key(epoch, "entities", shard))
	args = first
	for _, e := range entities {
		keys = append(keys, f.key(epoch, "entity", shard)+":"+e.Key)
		args = append(args, e.Key, e.Note, len(e.Values))
		for _, v := range e.Values {
			args = append(args, fmt.Sprintf("%0*d", offsetDigits, v.Offset), v.Field, v.Value, v.Also)
		}
	}
	return keys, args
}

// written returns the error of scripts that write to shards. An answer is nil if nothing was written.
func (f *Facts) written(what, of string, answers []*redis.Cmd, err error) error {
	if lostType(err) {
		return fmt.Errorf("redis: %s %s: %w: %w", what, f.name, ErrLost, err)
	}
	if err != nil {
		return fmt.Errorf("redis: %s %s: %w", what, f.name, err)
	}
	for n, answer := range answers {
		if answer == nil {
			continue
		}
		switch result, err := answer.Text(); {
		case err != nil:
			return fmt.Errorf("redis: %s shard %d of %s: %w", what, n, f.name, err)
		case result == "lost":
			return fmt.Errorf("redis: %s shard %d of %s: %w", what, n, f.name, ErrLost)
		case result == "gap":
			return fmt.Errorf("redis: %s shard %d of %s: %s: %w", what, n, f.name, of, ErrFactGap)
		}
	}
	return nil
}

// lostType reports whether a script found a key of a wrong type. Servers and the embedded one put the
// text into errors of different forms.
func lostType(err error) bool {
	return wrongType(err) || err != nil && strings.Contains(err.Error(), "WRONGTYPE")
}

// FactRead asks for entities of a shard, and is filled by Read.
type FactRead struct {
	Shard int
	Keys  []string
	// Known is the state's Writes that the caller knows; -1 means none.
	Known int64

	Writes int64
	// State is the shard's state at that moment; nil if Writes equals Known.
	State *FactShard
	// Entities are the fields and values of the entities, alternating.
	Entities [][]string
}

// readFactsScript reads entities of a shard and, unless the caller knows it, the shard's state.
//
//	KEYS  shard, then the entities' own
//	ARGV  known count of writes
const readFactsScript = `
local writes = redis.call('HGET', KEYS[1], '~writes')
if not writes then
  return {}
end
local all = {writes, {}}
if writes ~= ARGV[1] then
  all[2] = redis.call('HGETALL', KEYS[1])
end
for k = 2, #KEYS do
  all[k+1] = redis.call('HGETALL', KEYS[k])
end
return all`

// Read fills reads in one round trip. Each is of one moment. It returns ErrLost if a shard does not
// exist.
func (f *Facts) Read(ctx context.Context, epoch string, reads []FactRead) error {
	answers := make([]*redis.Cmd, len(reads))
	_, err := f.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range reads {
			r := &reads[i]
			keys := append(make([]string, 0, 1+len(r.Keys)), f.key(epoch, "shard", r.Shard))
			entity := f.key(epoch, "entity", r.Shard) + ":"
			for _, k := range r.Keys {
				keys = append(keys, entity+k)
			}
			answers[i] = p.Eval(ctx, readFactsScript, keys, r.Known)
		}
		return nil
	})
	if lostType(err) {
		return fmt.Errorf("redis: read %s: %w: %w", f.name, ErrLost, err)
	}
	if err != nil {
		return fmt.Errorf("redis: read %s: %w", f.name, err)
	}
	for i, answer := range answers {
		if err := reads[i].parse(answer.Val()); err != nil {
			return fmt.Errorf("redis: read shard %d of %s: %w", reads[i].Shard, f.name, err)
		}
	}
	return nil
}

// parse fills a read from the script's answer.
func (r *FactRead) parse(answer any) error {
	all, _ := answer.([]any)
	if len(all) != 2+len(r.Keys) {
		return ErrLost
	}
	writes, _ := all[0].(string)
	var err error
	if r.Writes, err = strconv.ParseInt(writes, 10, 64); err != nil {
		return ErrLost
	}
	r.State = nil
	if r.Writes != r.Known {
		fields := texts(all[1])
		state := make(map[string]string, len(fields)/2)
		for i := 0; i+1 < len(fields); i += 2 {
			state[fields[i]] = fields[i+1]
		}
		s, ok := parseFactShard(state)
		if !ok {
			return ErrLost
		}
		r.State = &s
	}
	r.Entities = r.Entities[:0]
	for _, e := range all[2:] {
		r.Entities = append(r.Entities, texts(e))
	}
	return nil
}

// texts returns the texts of a nested answer.
func texts(answer any) []string {
	all, _ := answer.([]any)
	if len(all) == 0 {
		return nil
	}
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i], _ = v.(string)
	}
	return texts
}
