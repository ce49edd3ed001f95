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

// How a loss is detected:
//
// Positions record which part of the log a view has applied. If all of Redis is lost, they are
// lost, too, and the view is rebuilt. But in a cluster the positions are on one node and most
// documents on others. If one of these is flushed, restarted empty or restored from an old copy,
// positions remain whose documents are gone.
//
// So the view has an epoch, a random number that is chosen when it is begun. Every shard has a
// marker: the epoch, and a count of the writes to the shard. The marker is the field with the empty
// name in the hash of the shard's documents, so one cannot be lost without the other. The positions
// contain the epoch, too, and the count of each shard at the time when they were saved.
//
// The view is intact if every shard's marker has the epoch of the positions, and a count that is
// not lower than theirs or than one that this process has seen. If the view is not intact, its
// positions are meaningless, and Positions returns none. The caller then begins again under a new
// epoch and reads the log from the beginning. Remaining documents are served meanwhile, and their
// versions make the replay skip them. A save is refused if the marker is not what the writer knows.
// So a loss is detected at the next write to the shard or at the next read of the positions.
//
// Only the process that chose an epoch writes it into markers, and it does so before there are
// positions under it. So a marker that was lost under an epoch never comes back under it,
// regardless of crashes. In the worst case the view is begun once more.
//
// This covers FLUSHALL, a restart without data, a hash that was deleted or evicted, and a node that
// came back with an older copy, whose count has decreased. The copy may be the node's own snapshot,
// or a replica that was promoted before the last writes reached it, since Redis acknowledges before
// it replicates.
//
// It does not cover such a replica if several processes feed the view, and the writes of the others
// bring the count back before this process writes or reads, which it does four times a second. A
// stream that continues then has a gap, and package streams reads the partition again. For a stream
// that does not continue, `millrace verify` compares view and store. min-replicas-to-write reduces
// this window. WAIT after every save would close it, at the cost of a round trip between servers.
//
// It also does not cover a set of references that was evicted alone. A Redis with views must not
// evict keys (maxmemory-policy noeviction).

// ErrLost means that Redis has lost data. After Begin has succeeded, and the log has been read from
// the positions that then exist, everything is restored.
var ErrLost = errors.New("redis has lost data")

// known is what this process knows of the shards' markers. A marker that is behind it has lost
// writes.
type known struct {
	epoch  string           // empty until it is read or chosen
	writes map[uint32]int64 // highest count seen under the epoch, by shard
}

// snapshot returns a copy of what is known.
func (d *Documents) snapshot() known {
	d.mu.Lock()
	defer d.mu.Unlock()
	return known{d.known.epoch, maps.Clone(d.known.writes)}
}

// recordWrite records a shard's count after a write.
func (d *Documents) recordWrite(epoch string, shard uint32, count int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if epoch != "" && epoch == d.known.epoch {
		d.known.writes[shard] = max(d.known.writes[shard], count)
	}
}

// setKnown records an epoch. It keeps what is known if the epoch is the same.
func (d *Documents) setKnown(k known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k.epoch != d.known.epoch {
		d.known = k
	}
}

// readState reads the positions and reports whether the view is intact.
func (d *Documents) readState(ctx context.Context) (p positions, intact bool, err error) {
	// Take the snapshot first: counts increase, so what was known before a marker was read cannot
	// be higher than the marker.
	known := d.snapshot()
	if p, err = d.readPositions(ctx); err != nil || p.epoch == "" || p.broken {
		return p, false, err
	}
	markers := make([]*redis.StringCmd, d.shards)
	_, err = d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for n := range markers {
			markers[n] = pipe.HGet(ctx, d.docsKey(uint32(n)), "")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) {
		return p, false, fmt.Errorf("redis: read the markers of %s: %w", d.name, err)
	}
	for n, marker := range markers {
		if err := marker.Err(); err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) {
			return p, false, fmt.Errorf("redis: read the markers of %s: %w", d.name, err)
		}
		// A missing marker, or one in a key of a wrong type, has no epoch.
		epoch, writes := parseMarker(marker.Val())
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

// parseMarker parses a marker. A missing or invalid one has no epoch.
func parseMarker(marker string) (epoch string, writes int64) {
	epoch, count, _ := strings.Cut(marker, " ")
	writes, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return "", 0
	}
	return epoch, writes
}

// beginScript deletes all positions and replaces the epoch ARGV[1], which may be empty, with
// ARGV[2]. It can be repeated, because the client does so.
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

// Begin makes a view intact that is new or has lost data. It then has no positions and a new epoch,
// and the remaining documents are kept. It does nothing if the view is intact. It returns ErrLost
// if another process begins the view at the same time: then read the positions again.
func (d *Documents) Begin(ctx context.Context) error {
	p, intact, err := d.readState(ctx)
	if err != nil {
		return err
	}
	if intact {
		d.setKnown(p.known())
		return nil
	}
	if err := d.setAsideWrongTypes(ctx); err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	var number [8]byte
	_, _ = rand.Read(number[:]) // never fails
	epoch := hex.EncodeToString(number[:])
	// Positions with the old epoch are deleted in the same step, so they never have the new epoch.
	mine, err := d.rdb.Eval(ctx, beginScript, []string{d.positionsKey()}, p.epoch, epoch).Int()
	if err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	if mine == 0 {
		return fmt.Errorf("redis: begin %s: another process has begun it: %w", d.name, ErrLost)
	}
	// If the process dies before all shards have the marker, the view is not intact, and the next
	// process begins it again.
	_, err = d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for n := range d.shards {
			pipe.HSet(ctx, d.docsKey(n), "", epoch+" 0")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("redis: begin %s: %w", d.name, err)
	}
	d.setKnown(known{epoch, map[uint32]int64{}})
	return nil
}
