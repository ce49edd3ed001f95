package redis

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Documents is one version of one view: versioned documents by id, an index from a reference to ids, and positions. All
// its keys start alike, and there are few of them, so that a version can be counted, listed and dropped:
//
//	millrace:orderstatus:v1:docs:{orderstatus:v1:07}   hash: id → version in 16 hexadecimal digits, then the data
//	millrace:orderstatus:v1:refs:{orderstatus:v1:3a}   hash: reference → ids, separated by blanks
//	millrace:orderstatus:v1:positions                  hash: field → position
//
// The documents are spread over shards, whose braces let a cluster spread the shards over its nodes. Scripts are sent
// whole: a server knows them by their hash anyway, and one that was restarted needs no special care.
type Documents struct {
	rdb  redis.UniversalClient
	name string // "orderstatus:v1"
}

// Document is a version of a document.
type Document struct {
	ID      string // without blanks
	Version uint64
	Data    []byte
	// Reference is another name to find it by; may be empty. It is stored beside the document, and cannot be changed by a
	// later version.
	Reference string
}

const (
	prefix        = "millrace:"
	shards        = 32
	versionDigits = 16
)

// Documents names a view and its version: "orderstatus/v1". Nothing is asked of the server.
func (c *Client) Documents(view string) *Documents {
	return &Documents{c.rdb, strings.ReplaceAll(view, "/", ":")}
}

func (d *Documents) shard(kind string, n uint32) string {
	return fmt.Sprintf("%s%s:%s:{%s:%02x}", prefix, d.name, kind, d.name, n)
}

func (d *Documents) shardOf(kind, id string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return d.shard(kind, h.Sum32()%shards)
}

// saveScript writes those documents whose version is higher than the stored one. Versions of equal length compare as
// strings; Lua's numbers would lose digits.
const saveScript = `
for i = 1, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or string.sub(old, 1, 16) < string.sub(ARGV[i+1], 1, 16) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1])
  end
end
return redis.status_reply('OK')`

// indexScript adds ids to references.
const indexScript = `
for i = 1, #ARGV, 2 do
  local ids = redis.call('HGET', KEYS[1], ARGV[i])
  if not ids then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i+1])
  elseif not string.find(' ' .. ids .. ' ', ' ' .. ARGV[i+1] .. ' ', 1, true) then
    redis.call('HSET', KEYS[1], ARGV[i], ids .. ' ' .. ARGV[i+1])
  end
end
return redis.status_reply('OK')`

// Save writes documents, each only where its version is higher than the stored one.
func (d *Documents) Save(ctx context.Context, docs []Document) error {
	index, data := map[string][]any{}, map[string][]any{}
	for _, doc := range docs {
		if doc.Reference != "" {
			key := d.shardOf("refs", doc.Reference)
			index[key] = append(index[key], doc.Reference, doc.ID)
		}
		key := d.shardOf("docs", doc.ID)
		data[key] = append(data[key], doc.ID, appendVersioned(nil, doc))
	}
	// The index first: an id that leads nowhere for a moment is harmless, but a document whose reference was lost in a crash
	// would never be found by it, as nobody writes that version again.
	if err := d.eval(ctx, indexScript, index); err != nil {
		return fmt.Errorf("redis: index documents of %s: %w", d.name, err)
	}
	if err := d.eval(ctx, saveScript, data); err != nil {
		return fmt.Errorf("redis: save documents of %s: %w", d.name, err)
	}
	return nil
}

// eval runs a script once per key, all in one round trip.
func (d *Documents) eval(ctx context.Context, script string, args map[string][]any) error {
	if len(args) == 0 {
		return nil
	}
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for key, a := range args {
			p.Eval(ctx, script, []string{key}, a...)
		}
		return nil
	})
	return err
}

func appendVersioned(b []byte, doc Document) []byte {
	b = append(b, fmt.Sprintf("%0*x", versionDigits, doc.Version)...)
	return append(b, doc.Data...)
}

// errDamaged is a stored value that Save did not write.
var errDamaged = errors.New("stored document is damaged; drop the view's keys and it will be rebuilt")

func parseVersioned(id, value string) (Document, error) {
	if len(value) < versionDigits {
		return Document{}, fmt.Errorf("%q: %w", id, errDamaged)
	}
	version, err := strconv.ParseUint(value[:versionDigits], 16, 64)
	if err != nil {
		return Document{}, fmt.Errorf("%q: %w: %w", id, errDamaged, err)
	}
	return Document{ID: id, Version: version, Data: []byte(value[versionDigits:])}, nil
}

// Load reads documents by id; one that does not exist is left out. References are not read back.
func (d *Documents) Load(ctx context.Context, ids ...string) (map[string]Document, error) {
	byShard := map[string][]string{}
	for _, id := range ids {
		key := d.shardOf("docs", id)
		byShard[key] = append(byShard[key], id)
	}
	answers := make(map[string]*redis.SliceCmd, len(byShard))
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for key, fields := range byShard {
			answers[key] = p.HMGet(ctx, key, fields...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: load documents of %s: %w", d.name, err)
	}
	docs := make(map[string]Document, len(ids))
	for key, answer := range answers {
		for i, v := range answer.Val() {
			value, ok := v.(string)
			if !ok {
				continue
			}
			id := byShard[key][i]
			if docs[id], err = parseVersioned(id, value); err != nil {
				return nil, fmt.Errorf("redis: load documents of %s: %w", d.name, err)
			}
		}
	}
	return docs, nil
}

// Lookup finds the ids of documents by their reference, in the order in which they came.
func (d *Documents) Lookup(ctx context.Context, reference string) ([]string, error) {
	ids, err := d.rdb.HGet(ctx, d.shardOf("refs", reference), reference).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("redis: look up a reference of %s: %w", d.name, err)
	}
	return strings.Fields(ids), nil
}

// Count counts the documents.
func (d *Documents) Count(ctx context.Context) (uint64, error) {
	var counts [shards]*redis.IntCmd
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range uint32(shards) {
			counts[n] = p.HLen(ctx, d.shard("docs", n))
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("redis: count documents of %s: %w", d.name, err)
	}
	var sum uint64
	for _, c := range counts {
		sum += uint64(c.Val())
	}
	return sum, nil
}

// Each calls fn once with every document, in no order. One that is written meanwhile may come in either version.
func (d *Documents) Each(ctx context.Context, fn func(Document) error) error {
	for n := range uint32(shards) {
		seen := map[string]bool{} // a scan may repeat what it meets while the server resizes the hash
		scan := d.rdb.HScan(ctx, d.shard("docs", n), 0, "", 256).Iterator()
		for scan.Next(ctx) {
			id := scan.Val()
			if !scan.Next(ctx) {
				break
			}
			if seen[id] {
				continue
			}
			seen[id] = true
			doc, err := parseVersioned(id, scan.Val())
			if err == nil {
				err = fn(doc)
			}
			if err != nil {
				return fmt.Errorf("redis: read documents of %s: %w", d.name, err)
			}
		}
		if err := scan.Err(); err != nil {
			return fmt.Errorf("redis: read documents of %s: %w", d.name, err)
		}
	}
	return nil
}
