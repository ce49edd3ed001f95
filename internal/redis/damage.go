package redis

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// How damage is handled:
//
// Every document is stored with a checksum, so a value that Save did not write is never read as a
// document. Load and Each return the other documents and a *DamagedError. Discard sets the damaged
// values aside and removes the marker of their shard. Then the view is not intact any more, and its
// feeder reads the log again, which restores what is missing. Begin sets keys of a wrong type
// aside.

// DamagedError means that the stored values of some documents were not written by Save.
type DamagedError struct {
	view   string
	values map[string]string // by id
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("redis: %d documents of %s are damaged, the first is %q", len(e.values), e.view, e.IDs()[0])
}

// IDs returns the ids of the damaged documents, in order.
func (e *DamagedError) IDs() []string { return slices.Sorted(maps.Keys(e.values)) }

// Is makes damage match ErrLost.
func (e *DamagedError) Is(target error) bool { return target == ErrLost }

// damaged collects damaged values.
type damaged struct {
	view   string
	values map[string]string
}

// add adds a value, up to the number that one call of Discard can handle. The next read returns the
// rest.
func (d *damaged) add(id, value string) {
	const most = 1000
	if d.values == nil {
		d.values = map[string]string{}
	}
	if len(d.values) < most {
		d.values[id] = value
	}
}

// err returns a *DamagedError, or nil if nothing is damaged. Its result is a plain error, because a
// nil *DamagedError in an error would not be nil.
func (d *damaged) err() error {
	if len(d.values) == 0 {
		return nil
	}
	return &DamagedError{d.view, d.values}
}

var checksums = crc32.MakeTable(crc32.Castagnoli)

// checksumDigits is the length of a checksum in hexadecimal.
const checksumDigits = 8

// checksum covers everything in a document that must not change.
func checksum(id string, version uint64, data []byte) uint32 {
	sum := crc32.Checksum([]byte(id), checksums)
	sum = crc32.Update(sum, checksums, strconv.AppendUint([]byte{0}, version, 16))
	return crc32.Update(sum, checksums, data)
}

// asideKey returns the key of a shard's damaged values, which the last Discard has removed.
func (d *Documents) asideKey(shard uint32) string { return d.key("damaged", shard) }

// discardScript moves damaged values to another hash, if they are still stored, and removes the
// shard's marker.
//
//	ARGV  id and damaged value, alternating
const discardScript = `
local found = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i+1] then
    if found == 0 then
      redis.call('DEL', KEYS[2])
    end
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i+1])
    redis.call('HDEL', KEYS[1], ARGV[i])
    found = found + 1
  end
end
if found > 0 then
  redis.call('HDEL', KEYS[1], '')
end
return found`

// Discard sets damaged documents aside. The view is not intact afterwards, so its feeder rebuilds
// it.
func (d *Documents) Discard(ctx context.Context, e *DamagedError) error {
	args := map[uint32][]any{}
	for id, value := range e.values {
		shard := d.shardOf(id)
		args[shard] = append(args[shard], id, value)
	}
	for shard, a := range args {
		if err := d.rdb.Eval(ctx, discardScript, []string{d.docsKey(shard), d.asideKey(shard)},
			a...).Err(); err != nil {
			return fmt.Errorf("redis: set aside damaged documents of %s: %w", d.name, err)
		}
	}
	return nil
}

// ForgetPositions deletes damaged positions, so that the view is read again from the beginning.
// Documents remain.
func (d *Documents) ForgetPositions(ctx context.Context) error {
	if err := d.rdb.Del(ctx, d.positionsKey()).Err(); err != nil {
		return fmt.Errorf("redis: delete the positions of %s: %w", d.name, err)
	}
	return nil
}

// setAsideWrongTypes renames keys of the view that should be hashes and are not. Another program
// must have written them.
func (d *Documents) setAsideWrongTypes(ctx context.Context) error {
	rename := func(key, aside string) error {
		kind, err := d.rdb.Type(ctx, key).Result()
		if err != nil || kind == "none" || kind == "hash" {
			return err
		}
		if d.rdb.Rename(ctx, key, aside).Err() == nil {
			return nil
		}
		// The server refuses to rename it. The data is not a view's, so it is dropped.
		return d.rdb.Unlink(ctx, key).Err()
	}
	errs := []error{rename(d.positionsKey(), d.key("positions-damaged", 0))}
	for shard := range d.shards {
		errs = append(errs, rename(d.docsKey(shard), d.key("docs-damaged", shard)))
	}
	return errors.Join(errs...)
}

// dropWrongReferences deletes reference keys that are not sets. Save writes them again.
func (d *Documents) dropWrongReferences(ctx context.Context, docs []Document) error {
	for _, doc := range docs {
		if doc.Reference == "" {
			continue
		}
		key := d.referenceKey(doc.Reference)
		kind, err := d.rdb.Type(ctx, key).Result()
		if err == nil && kind != "none" && kind != "set" {
			err = d.rdb.Unlink(ctx, key).Err()
		}
		if err != nil {
			return fmt.Errorf("redis: delete damaged references of %s: %w", d.name, err)
		}
	}
	return nil
}

// wrongType reports whether a command found a key of another type.
func wrongType(err error) bool { return redis.HasErrorPrefix(err, "WRONGTYPE") }

// ReadOnly reports whether an error means that this user or server cannot write.
func ReadOnly(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") || redis.HasErrorPrefix(err, "READONLY")
}
