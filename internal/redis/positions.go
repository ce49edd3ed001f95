package redis

import (
	"context"
	"fmt"
)

// Move takes a position from one value to another; empty is not there.
type Move struct{ Field, From, To string }

// moveScript makes all moves where every position is where its move starts, or at its end already: the client repeats a
// call whose answer was lost. Otherwise it answers with the first field that is not.
const moveScript = `
for i = 1, #ARGV, 3 do
  local now = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if now ~= ARGV[i+1] and now ~= ARGV[i+2] then
    return ARGV[i]
  end
end
for i = 1, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+2])
end
return ''`

func (d *Documents) positionsKey() string { return prefix + d.name + ":positions" }

// Positions reads all positions.
func (d *Documents) Positions(ctx context.Context) (map[string]string, error) {
	positions, err := d.rdb.HGetAll(ctx, d.positionsKey()).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: read positions of %s: %w", d.name, err)
	}
	return positions, nil
}

// MovePositions makes all moves or none. Where a position is not where its move starts it makes none and returns that
// position's field; else empty.
func (d *Documents) MovePositions(ctx context.Context, moves []Move) (stray string, err error) {
	args := make([]any, 0, 3*len(moves))
	for _, m := range moves {
		args = append(args, m.Field, m.From, m.To)
	}
	stray, err = d.rdb.Eval(ctx, moveScript, []string{d.positionsKey()}, args...).Text()
	if err != nil {
		return "", fmt.Errorf("redis: save positions of %s: %w", d.name, err)
	}
	return stray, nil
}
