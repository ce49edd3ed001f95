package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// How a loss is noticed.
//
// Positions say how far a view is, and where all of Redis is lost they are lost with it, so the
// view is built again. But in a cluster the positions lie on one node and most documents on others:
// a node that was flushed, restarted empty or from an old copy would leave positions that promise
// what is gone. So the view has an epoch, a random number that is drawn when it is begun, and every
// shard has a mark: the epoch, and a count of the writes to the shard. The mark is a field of the
// hash that holds the shard's documents, the one whose name is empty, so that neither goes without
// the other. The positions carry the epoch, too, and of each shard the count that had been reached
// when they were saved.
//
// The view is whole while every shard's mark has the epoch of the positions, and no smaller count
// than theirs, nor than this process has seen itself. Positions of a view that is not whole are as
// good as none, and Positions says so: its caller begins anew, under another epoch, and reads the
// log from the beginning. Documents that are still there stay and are served, for their versions
// make the replay pass them over. A save is refused where the mark is not what the writer knows, so
// a loss is noticed at the next write to the shard, or the next look at the positions, whichever
// comes first; at the start of a process, too.
//
// Nobody but who draws an epoch writes it into marks, and does so before there are positions under
// it. So whatever crashes or is overtaken in between, a mark that is lost under an epoch never
// comes back under it, and no loss can be papered over; the worst is that the view is begun once
// more.
//
// What this covers: FLUSHALL, a restart without data, a hash that was deleted or evicted, and a
// node that came back with an older copy (its own snapshot, or as a replica that was promoted
// before the last writes had reached it; Redis acknowledges before it replicates): the count has
// gone back. What it does not: that replica, where several processes feed the view, and the others'
// writes bring the count back to where it was before this one has written or looked, which it does
// four times a second. Then a stream that continues shows a gap, and streams reads the partition
// again; for one that does not there is `millrace verify`, which compares view and store. Who wants
// the window closed has the servers wait for a replica (min-replicas-to-write bounds it; WAIT at
// every save would close it, at the price of a round trip between servers). Nor does it cover a set
// of references that was evicted alone: a Redis that holds views must not evict (maxmemory-policy
// noeviction).

// ErrLost says that Redis does not hold what it held before. Where Begin has been called and
// succeeded, and the log is read from the positions that are there then, all comes back.
var ErrLost = errors.New("redis does not hold what it held")

// known is what this process knows of the shards' marks.
type known struct {
	epoch  string           // empty until it was read or drawn
	writes map[uint32]int64 // the highest count of each shard that was seen under the epoch
}

func (d *Documents) snapshot() known {
	d.mu.Lock()
	defer d.mu.Unlock()
	return known{d.known.epoch, maps.Clone(d.known.writes)}
}

// wrote records a shard's count.
func (d *Documents) wrote(epoch string, shard uint32, count int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if epoch != "" && epoch == d.known.epoch {
		d.known.writes[shard] = max(d.known.writes[shard], count)
	}
}

// learn records an epoch. What is known of the same one already stays.
func (d *Documents) learn(k known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k.epoch != d.known.epoch {
		d.known = k
	}
}

// look reads the positions, and whether the view is whole.
func (d *Documents) look(ctx context.Context) (p positions, whole bool, err error) {
	// In this order: counts rise, and what was known before a mark was read cannot be above it.
	known := d.snapshot()
	if p, err = d.readPositions(ctx); err != nil || p.epoch == "" || p.broken {
		return p, false, err
	}
	marks := make([]*redis.StringCmd, d.shards)
	_, err = d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for n := range marks {
			marks[n] = pipe.HGet(ctx, d.docsKey(uint32(n)), "")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) {
		return p, false, fmt.Errorf("redis: read the marks of %s: %w", d.name, err)
	}
	for n, mark := range marks {
		if err := mark.Err(); err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) {
			return p, false, fmt.Errorf("redis: read the marks of %s: %w", d.name, err)
		}
		epoch, writes := parseMark(mark.Val())
		least := p.writes[uint32(n)]
		if known.epoch == p.epoch {
			least = max(least, known.writes[uint32(n)])
		}
		if epoch != p.epoch || writes < least {
			return p, false, nil
		}
	}
	return p, true, nil
}

// parseMark reads a mark. One that is not there, or not ours, has no epoch.
func parseMark(mark string) (epoch string, writes int64) {
	epoch, count, _ := strings.Cut(mark, " ")
	writes, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return "", 0
	}
	return epoch, writes
}

// beginScript forgets all positions and puts another epoch in the place of the one that it names,
// or of none. The client may repeat it.
const beginScript = `
local now = redis.call('HGET', KEYS[1], '~epoch') or ''
if now == ARGV[2] then
  return 1
end
if now ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '~epoch', ARGV[2])
return 1`

// Begin returns a view whole that is not, be it new or have it lost something: there are no
// positions then, but whatever documents there are stay. A view that is whole it leaves alone. It
// fails with ErrLost where another process begins the view at the same time: look again.
func (d *Documents) Begin(ctx context.Context) error {
	p, whole, err := d.look(ctx)
	if err != nil {
		return err
	}
	if whole {
		d.learn(p.known())
		return nil
	}
	if err := d.setAsideWrongTypes(ctx); err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	var number [8]byte
	_, _ = rand.Read(number[:]) // never fails
	epoch := hex.EncodeToString(number[:])
	mine, err := d.rdb.Eval(ctx, beginScript, []string{d.positionsKey()}, p.epoch, epoch).Int()
	if err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	if mine == 0 {
		return fmt.Errorf("redis: begin %s: another process does: %w", d.name, ErrLost)
	}
	_, err = d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for n := range d.shards {
			pipe.HSet(ctx, d.docsKey(n), "", epoch+" 0")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	d.learn(known{epoch, map[uint32]int64{}})
	return nil
}
