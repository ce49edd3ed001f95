package redis

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Move changes a position from one value to another. An empty From means that it does not exist. A
// field must not begin with "~".
type Move struct{ Field, From, To string }

// Fields of the positions' hash that are not positions: the epoch, and a count of writes per shard.
const (
	ownField    = "~"
	epochField  = "~epoch"
	writesField = "~writes:"
)

// moveScript makes all moves if every position is where its move starts, or already at its end,
// because the client repeats a call whose answer was lost. Otherwise it returns the first field
// that is not, which may be the epoch's.
//
//	ARGV  epoch, number of counts, field and count alternating, then field, from and to alternating
const moveScript = `
if redis.call('HGET', KEYS[1], '~epoch') ~= ARGV[1] then
  return '~epoch'
end
local first = 3 + 2 * tonumber(ARGV[2])
for i = first, #ARGV, 3 do
  local now = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if now ~= ARGV[i+1] and now ~= ARGV[i+2] then
    return ARGV[i]
  end
end
for i = first, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+2])
end
for i = 3, first - 1, 2 do
  if tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0') < tonumber(ARGV[i+1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1])
  end
end
return ''`

// positionsKey returns the key of the positions, which are in the slot of shard 0.
func (d *Documents) positionsKey() string { return d.key("positions", 0) }

// positions is the content of the positions' hash.
type positions struct {
	fields map[string]string
	epoch  string           // empty if the view was never begun, or has lost its epoch
	writes map[uint32]int64 // counts of writes, by shard
	broken bool             // some of it is unreadable
}

// known returns the epoch and the counts.
func (p positions) known() known { return known{p.epoch, p.writes} }

// readPositions reads the positions' hash. A damaged hash is not an error, but broken.
func (d *Documents) readPositions(ctx context.Context) (positions, error) {
	all, err := d.rdb.HGetAll(ctx, d.positionsKey()).Result()
	if wrongType(err) {
		return positions{broken: true}, nil
	}
	if err != nil {
		return positions{}, fmt.Errorf("redis: read positions of %s: %w", d.name, err)
	}
	p := positions{fields: map[string]string{}, writes: map[uint32]int64{}}
	for field, value := range all {
		shard, writes := strings.CutPrefix(field, writesField)
		switch {
		case writes:
			n, err1 := strconv.ParseUint(shard, 10, 32)
			count, err2 := strconv.ParseInt(value, 10, 64)
			if err1 != nil || err2 != nil {
				p.broken = true
				continue
			}
			p.writes[uint32(n)] = count
		case field == epochField:
			p.epoch = value
		case !strings.HasPrefix(field, ownField):
			p.fields[field] = value
		}
	}
	return p, nil
}

// Positions returns all positions. It returns none if the view is not intact, that is, if it was
// never begun or has lost data.
func (d *Documents) Positions(ctx context.Context) (map[string]string, error) {
	p, intact, err := d.readState(ctx)
	if err != nil || !intact {
		return nil, err
	}
	d.setKnown(p.known())
	return p.fields, nil
}

// MovePositions makes all moves or none. It returns ErrLost if a position is not where its move
// starts, or if the view was begun again since this process last read it. Begin must have been
// called before.
func (d *Documents) MovePositions(ctx context.Context, moves []Move) error {
	known := d.snapshot()
	args := make([]any, 0, 2+2*len(known.writes)+3*len(moves))
	args = append(args, known.epoch, len(known.writes))
	// The positions must not be ahead of the documents, so they record how many writes each shard
	// must at least have.
	for shard, count := range known.writes {
		args = append(args, writesField+strconv.FormatUint(uint64(shard), 10), count)
	}
	for _, m := range moves {
		args = append(args, m.Field, m.From, m.To)
	}
	conflict, err := d.rdb.Eval(ctx, moveScript, []string{d.positionsKey()}, args...).Text()
	if wrongType(err) {
		return fmt.Errorf("redis: save positions of %s: %w: %w", d.name, ErrLost, err)
	}
	if err != nil {
		return fmt.Errorf("redis: save positions of %s: %w", d.name, err)
	}
	if conflict != "" {
		return fmt.Errorf("redis: save positions of %s: %s has changed: %w", d.name,
			strings.TrimPrefix(conflict, ownField), ErrLost)
	}
	return nil
}
