package redis

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/millrace/millrace/internal/failpoint"
)

// Documents is one version of one view: versioned documents by id, an index from a reference to ids, and positions:
//
//	millrace:orderstatus:v1:docs:{orderstatus:v1:00}   hash: id → version in 16 hexadecimal digits, then the data
//	millrace:orderstatus:v1:ref:536365                 set: ids of the documents with that reference
//	millrace:orderstatus:v1:positions                  hash: field → position
//
// The documents lie in few hashes, so that they can be counted, listed and dropped without looking at the keys of others,
// and so that one call of the script that guards the versions takes a whole batch. In a cluster there are more, whose
// braces let it spread them over its nodes. The script is sent whole: a server knows it by its hash anyway, and one that
// was restarted needs no special care.
type Documents struct {
	rdb    redis.UniversalClient
	name   string // "orderstatus:v1"
	shards uint32
}

// Document is a version of a document.
type Document struct {
	ID      string
	Version uint64
	Data    []byte
	// Reference is another name to find it by; may be empty. It is stored beside the document, and cannot be changed by a
	// later version.
	Reference string
}

const (
	prefix        = "millrace:"
	clusterShards = 64
	versionDigits = 16
)

// Documents names a view and its version: "orderstatus/v1". Nothing is asked of the server.
func (c *Client) Documents(view string) *Documents {
	d := &Documents{rdb: c.rdb, name: strings.ReplaceAll(view, "/", ":"), shards: 1}
	if _, cluster := c.rdb.(*redis.ClusterClient); cluster {
		d.shards = clusterShards
	}
	return d
}

func (d *Documents) shard(n uint32) string {
	return fmt.Sprintf("%s%s:docs:{%s:%02x}", prefix, d.name, d.name, n)
}

func (d *Documents) shardOf(id string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return d.shard(h.Sum32() % d.shards)
}

func (d *Documents) referenceKey(reference string) string {
	return prefix + d.name + ":ref:" + reference
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

// Save writes documents, each only where its version is higher than the stored one.
func (d *Documents) Save(ctx context.Context, docs []Document) error {
	// The index first: an id that leads nowhere for a moment is harmless, but a document whose reference was lost in a crash
	// would never be found by it, as nobody writes that version again.
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, doc := range docs {
			if doc.Reference != "" {
				p.SAdd(ctx, d.referenceKey(doc.Reference), doc.ID)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("redis: index documents of %s: %w", d.name, err)
	}
	args := map[string][]any{}
	for _, doc := range docs {
		key := d.shardOf(doc.ID)
		args[key] = append(args[key], doc.ID, appendVersioned(nil, doc))
	}
	script := saveScript
	if failpoint.On("view.noguard") {
		script = strings.Replace(script, "<", "~=", 1)
	}
	_, err = d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for key, a := range args {
			p.Eval(ctx, script, []string{key}, a...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("redis: save documents of %s: %w", d.name, err)
	}
	return nil
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
		key := d.shardOf(id)
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

// Lookup finds the ids of documents by their reference, sorted.
func (d *Documents) Lookup(ctx context.Context, reference string) ([]string, error) {
	ids, err := d.rdb.SMembers(ctx, d.referenceKey(reference)).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: look up a reference of %s: %w", d.name, err)
	}
	slices.Sort(ids)
	return ids, nil
}

// Count counts the documents.
func (d *Documents) Count(ctx context.Context) (uint64, error) {
	counts := make([]*redis.IntCmd, d.shards)
	_, err := d.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range d.shards {
			counts[n] = p.HLen(ctx, d.shard(n))
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
	for n := range d.shards {
		seen := map[string]bool{} // a scan may repeat what it meets while the server resizes the hash
		scan := d.rdb.HScan(ctx, d.shard(n), 0, "", 256).Iterator()
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
