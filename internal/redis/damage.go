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

// How damage is handled.
//
// Every document is stored with a checksum, so a value that Save did not write is never read as a
// document. Load and Each return the others beside a *DamagedError. Discard sets the damaged values
// aside and breaks the mark of their shard. So the view is not whole any more, and its feeder reads
// the log again, which restores what is missing. A key of a wrong type is set aside by Begin.

// DamagedError names documents whose stored value was not written by Save.
type DamagedError struct {
	view   string
	values map[string]string // by id
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("redis: %d documents of %s are damaged, the first is %q", len(e.values), e.view, e.IDs()[0])
}

// IDs returns the ids of the damaged documents, in order.
func (e *DamagedError) IDs() []string { return slices.Sorted(maps.Keys(e.values)) }

// Is makes damage a kind of ErrLost.
func (e *DamagedError) Is(target error) bool { return target == ErrLost }

// damaged collects what is damaged.
type damaged struct {
	view   string
	values map[string]string
}

// add keeps at most so many that one call of Discard can handle them; the next look finds the rest.
func (d *damaged) add(id, value string) {
	const most = 1000
	if d.values == nil {
		d.values = map[string]string{}
	}
	if len(d.values) < most {
		d.values[id] = value
	}
}

func (d *damaged) err() error {
	if len(d.values) == 0 {
		return nil
	}
	return &DamagedError{d.view, d.values}
}

var checksums = crc32.MakeTable(crc32.Castagnoli)

const checksumDigits = 8

// checksum is over everything of a document that must not change.
func checksum(id string, version uint64, data []byte) uint32 {
	sum := crc32.Checksum([]byte(id), checksums)
	sum = crc32.Update(sum, checksums, strconv.AppendUint([]byte{0}, version, 16))
	return crc32.Update(sum, checksums, data)
}

// asideKey returns where a shard keeps the damaged values that Discard removed last.
func (d *Documents) asideKey(shard uint32) string { return d.key("damaged", shard) }

// discardScript moves fields that still have the damaged value to another hash, and removes the
// shard's mark.
//
//	ARGV  an id and the damaged value by turns
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

// Discard sets damaged documents aside. The view is not whole afterwards.
func (d *Documents) Discard(ctx context.Context, e *DamagedError) error {
	args := map[uint32][]any{}
	for id, value := range e.values {
		shard := d.shardOf(id)
		args[shard] = append(args[shard], id, value)
	}
	for shard, a := range args {
		if err := d.rdb.Eval(ctx, discardScript, []string{d.docsKey(shard), d.asideKey(shard)}, a...).Err(); err != nil {
			return fmt.Errorf("redis: set aside damaged documents of %s: %w", d.name, err)
		}
	}
	return nil
}

// ForgetPositions returns the view start over, because its positions are damaged. Documents stay.
func (d *Documents) ForgetPositions(ctx context.Context) error {
	if err := d.rdb.Del(ctx, d.positionsKey()).Err(); err != nil {
		return fmt.Errorf("redis: forget the positions of %s: %w", d.name, err)
	}
	return nil
}

// setAsideWrongTypes renames keys of the view that are not hashes.
func (d *Documents) setAsideWrongTypes(ctx context.Context) error {
	rename := func(key, aside string) error {
		kind, err := d.rdb.Type(ctx, key).Result()
		if err != nil || kind == "none" || kind == "hash" {
			return err
		}
		if d.rdb.Rename(ctx, key, aside).Err() == nil {
			return nil
		}
		return d.rdb.Unlink(ctx, key).Err() // a server that cannot rename
	}
	errs := []error{rename(d.positionsKey(), d.key("positions-damaged", 0))}
	for shard := range d.shards {
		errs = append(errs, rename(d.docsKey(shard), d.key("docs-damaged", shard)))
	}
	return errors.Join(errs...)
}

// dropWrongReferences removes reference keys that are not sets. Save writes them again.
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
			return fmt.Errorf("redis: look for damaged references of %s: %w", d.name, err)
		}
	}
	return nil
}

// wrongType reports whether a command met a key of another type than ours.
func wrongType(err error) bool { return redis.HasErrorPrefix(err, "WRONGTYPE") }

// ReadOnly reports whether an error says that this user may not write.
func ReadOnly(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") || redis.HasErrorPrefix(err, "READONLY")
}
