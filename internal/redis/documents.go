package redis

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/millrace/millrace/internal/failpoint"
)

// Documents is one version of a view: versioned documents by id, an index from references to ids,
// and positions:
//
//	millrace:orderstatus:v2:docs:{orderstatus:v2:00}         hash: id → document
//	millrace:orderstatus:v2:ref:{orderstatus:v2:00}:536365   set: ids of the documents with that reference
//	millrace:orderstatus:v2:positions:{orderstatus:v2:00}    hash: field → position
//
// A document is its version in 16 hexadecimal digits, a checksum in 8, and the data.
//
// The documents are in few hashes, the shards. So they can be counted, listed and dropped without a
// scan of other keys, and one call of the script that guards versions writes a whole batch. A
// single server has one shard. A cluster has more. The braces in their keys distribute them over
// the nodes, and keep all keys of one script in one slot. Every key of the view belongs to a shard.
// So visiting all shards visits all nodes with data of the view, and a node that lost its data has
// lost the marker of a shard; see loss.go.
//
// Scripts are sent with each call. A server caches them by their hash anyway, and one that was
// restarted needs no special handling.
type Documents struct {
	rdb    redis.UniversalClient
	name   string // "orderstatus:v2"
	shards uint32

	// mu protects known.
	mu    sync.Mutex
	known known
}

// Document is one version of a document.
type Document struct {
	ID      string // not empty
	Version uint64
	Data    []byte
	// Reference is another name to find the document by. It may be empty. It is stored beside the
	// document, and later versions cannot change it.
	Reference string
}

const (
	prefix        = "millrace:"
	clusterShards = 64
	versionDigits = 16
)

// Documents returns the documents of a view and its version: "orderstatus/v2". It does not contact
// the server.
func (c *Client) Documents(view string) *Documents {
	d := &Documents{rdb: c.rdb, name: strings.ReplaceAll(view, "/", ":"), shards: 1}
	if _, cluster := c.rdb.(*redis.ClusterClient); cluster {
		d.shards = clusterShards
	}
	return d
}

// key returns a key in a shard's slot.
func (d *Documents) key(kind string, shard uint32) string {
	return fmt.Sprintf("%s%s:%s:{%s:%02x}", prefix, d.name, kind, d.name, shard)
}

// docsKey returns the key of a shard's documents.
func (d *Documents) docsKey(shard uint32) string { return d.key("docs", shard) }

// referenceKey returns the key of the set of ids with a reference.
func (d *Documents) referenceKey(reference string) string {
	return d.key("ref", d.shardOf(reference)) + ":" + reference
}

// shardOf returns the shard of an id or a reference.
func (d *Documents) shardOf(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return h.Sum32() % d.shards
}

// saveScript writes the documents into a shard whose version is higher than the stored one.
// Versions of equal length are compared as strings, because Lua's numbers would lose digits. If the
// shard's marker is not what the writer knows, the script writes nothing and returns -1. Otherwise
// it counts the write in the marker and returns the count.
//
//	ARGV  epoch or empty, count of writes, then id and document, alternating
const saveScript = `
local epoch, writes
if ARGV[1] ~= '' then
  epoch, writes = string.match(redis.call('HGET', KEYS[1], '') or '', '^(%x+) (%d+)$')
  if epoch ~= ARGV[1] or tonumber(writes) < tonumber(ARGV[2]) then
    return -1
  end
end
for i = 3, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or string.sub(old, 1, 16) < string.sub(ARGV[i+1], 1, 16) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1])
  end
end
if not epoch then
  return 0
end
writes = string.format('%d', tonumber(writes) + 1)
redis.call('HSET', KEYS[1], '', epoch .. ' ' .. writes)
return tonumber(writes)`

// script returns saveScript. A failpoint removes its guard, so that the kill matrix can show that
// it is needed.
func script() string {
	if failpoint.On("view.noguard") {
		return strings.Replace(saveScript, "if not old or", "if true or", 1)
	}
	return saveScript
}

// Save writes each document whose version is higher than the stored one, and all references. It
// returns ErrLost if a shard's marker is not what this process knows. It may then have written to
// other shards. Before the first call of Begin or Positions, nothing is known and nothing is
// checked.
func (d *Documents) Save(ctx context.Context, docs []Document) error {
	if len(docs) == 0 {
		return nil
	}
	if slices.ContainsFunc(docs, func(doc Document) bool { return doc.ID == "" }) {
		return fmt.Errorf("redis: save documents of %s: a document has no id", d.name)
	}
	// The script compares the shard's marker with what is known now.
	known := d.snapshot()
	args := map[uint32][]any{} // of the script, by shard
	begin := func(shard uint32) {
		if args[shard] == nil {
			args[shard] = []any{known.epoch, known.writes[shard]}
		}
	}
	answers := map[uint32]*redis.Cmd{}
	// Everything is sent in one round trip. A crash may lose a document and keep its reference, or
	// the reverse. Then neither was acknowledged, and both are delivered again.
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, doc := range docs {
			shard := d.shardOf(doc.ID)
			begin(shard)
			args[shard] = append(args[shard], doc.ID, appendVersioned(nil, doc))
			if doc.Reference != "" {
				begin(d.shardOf(doc.Reference)) // a reference counts as a write to its shard, too
				p.SAdd(ctx, d.referenceKey(doc.Reference), doc.ID)
			}
		}
		for shard, a := range args {
			answers[shard] = p.Eval(ctx, script(), []string{d.docsKey(shard)}, a...)
		}
		return nil
	})
	if wrongType(err) {
		err = fmt.Errorf("redis: save documents of %s: %w: %w", d.name, ErrLost, err)
		return errors.Join(err, d.dropWrongReferences(ctx, docs))
	}
	if err != nil {
		return fmt.Errorf("redis: save documents of %s: %w", d.name, err)
	}
	for shard, answer := range answers {
		count, err := answer.Int64()
		switch {
		case err != nil:
			return fmt.Errorf("redis: save documents of %s: %w", d.name, err)
		case count < 0: // the script's answer if the marker has changed
			return fmt.Errorf("redis: save documents of %s: shard %d: %w", d.name, shard, ErrLost)
		}
		d.recordWrite(known.epoch, shard, count)
	}
	return nil
}

// appendVersioned appends the stored form of a document.
func appendVersioned(b []byte, doc Document) []byte {
	b = fmt.Appendf(b, "%0*x%0*x", versionDigits, doc.Version, checksumDigits, checksum(doc.ID, doc.Version, doc.Data))
	return append(b, doc.Data...)
}

// parseVersioned parses a document that appendVersioned wrote. ok is false for any other value.
func parseVersioned(id, value string) (doc Document, ok bool) {
	if len(value) < versionDigits+checksumDigits {
		return Document{}, false
	}
	version, err1 := strconv.ParseUint(value[:versionDigits], 16, 64)
	sum, err2 := strconv.ParseUint(value[versionDigits:versionDigits+checksumDigits], 16, 32)
	doc = Document{ID: id, Version: version, Data: []byte(value[versionDigits+checksumDigits:])}
	return doc, err1 == nil && err2 == nil && uint32(sum) == checksum(id, version, doc.Data)
}

// Load returns documents by id, without their references. Documents that do not exist are missing.
// If some are damaged, the error is a *DamagedError, and the others are returned.
func (d *Documents) Load(ctx context.Context, ids ...string) (map[string]Document, error) {
	byShard := map[uint32][]string{}
	for _, id := range ids {
		if id != "" { // the empty id is the marker's
			shard := d.shardOf(id)
			byShard[shard] = append(byShard[shard], id)
		}
	}
	answers := make(map[uint32]*redis.SliceCmd, len(byShard))
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for shard, fields := range byShard {
			answers[shard] = p.HMGet(ctx, d.docsKey(shard), fields...)
		}
		return nil
	})
	if wrongType(err) {
		return nil, fmt.Errorf("redis: load documents of %s: %w: %w", d.name, ErrLost, err)
	}
	if err != nil {
		return nil, fmt.Errorf("redis: load documents of %s: %w", d.name, err)
	}
	docs, bad := make(map[string]Document, len(ids)), damaged{view: d.name}
	for shard, answer := range answers {
		for i, v := range answer.Val() {
			value, ok := v.(string)
			if !ok {
				continue
			}
			id := byShard[shard][i]
			if doc, ok := parseVersioned(id, value); ok {
				docs[id] = doc
			} else {
				bad.add(id, value)
			}
		}
	}
	return docs, bad.err()
}

// Lookup returns the ids of the documents with a reference, sorted.
func (d *Documents) Lookup(ctx context.Context, reference string) ([]string, error) {
	ids, err := d.rdb.SMembers(ctx, d.referenceKey(reference)).Result()
	if wrongType(err) {
		return nil, fmt.Errorf("redis: look up a reference of %s: %w: %w", d.name, ErrLost, err)
	}
	if err != nil {
		return nil, fmt.Errorf("redis: look up a reference of %s: %w", d.name, err)
	}
	slices.Sort(ids)
	return ids, nil
}

// Unreferenced returns the ids of those documents that their reference does not lead to.
func (d *Documents) Unreferenced(ctx context.Context, docs []Document) (ids map[string]bool, err error) {
	answers := map[string]*redis.BoolCmd{}
	_, err = d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, doc := range docs {
			if doc.Reference != "" {
				answers[doc.ID] = p.SIsMember(ctx, d.referenceKey(doc.Reference), doc.ID)
			}
		}
		return nil
	})
	if err != nil && !wrongType(err) {
		return nil, fmt.Errorf("redis: look up references of %s: %w", d.name, err)
	}
	ids = map[string]bool{}
	for id, answer := range answers {
		if !answer.Val() {
			ids[id] = true
		}
	}
	return ids, nil
}

// Count returns the number of documents.
func (d *Documents) Count(ctx context.Context) (uint64, error) {
	counts, markers := make([]*redis.IntCmd, d.shards), make([]*redis.BoolCmd, d.shards)
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range d.shards {
			counts[n], markers[n] = p.HLen(ctx, d.docsKey(n)), p.HExists(ctx, d.docsKey(n), "")
		}
		return nil
	})
	if err != nil && !wrongType(err) { // a damaged shard has no documents
		return 0, fmt.Errorf("redis: count documents of %s: %w", d.name, err)
	}
	var sum uint64
	for n := range d.shards {
		sum += uint64(counts[n].Val())
		// The marker is not a document. The shard may appear or disappear between the two commands.
		if markers[n].Val() && counts[n].Val() > 0 {
			sum--
		}
	}
	return sum, nil
}

// Each calls fn once with every document, in any order. For a document that is written
// concurrently, it may be either version. If some are damaged, fn is called with the others, and
// the error is a *DamagedError.
func (d *Documents) Each(ctx context.Context, fn func(Document) error) error {
	bad := damaged{view: d.name}
	for n := range d.shards {
		// A scan may return a field more than once while the server resizes the hash. The empty
		// field is the marker, which is not a document.
		seen := map[string]bool{"": true}
		scan := d.rdb.HScan(ctx, d.docsKey(n), 0, "", 256).Iterator()
		for scan.Next(ctx) {
			id := scan.Val()
			if !scan.Next(ctx) {
				break
			}
			if seen[id] {
				continue
			}
			seen[id] = true
			doc, ok := parseVersioned(id, scan.Val())
			if !ok {
				bad.add(id, scan.Val())
				continue
			}
			if err := fn(doc); err != nil {
				return fmt.Errorf("redis: read documents of %s: %w", d.name, err)
			}
		}
		err := scan.Err()
		if wrongType(err) {
			err = fmt.Errorf("%w: %w", ErrLost, err)
		}
		if err != nil {
			return fmt.Errorf("redis: read documents of %s: %w", d.name, err)
		}
	}
	return bad.err()
}
