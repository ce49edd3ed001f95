package redis

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/millrace/millrace/internal/failpoint"
)

// write is a pending change to a LevelDB key.
type write struct {
	value   string
	deleted bool
}

// tx is one command or script. Its changes are collected in memory and written by commit, so a
// script that fails changes nothing. Its reads include its own changes. writes is nil in a
// read-only transaction.
type tx struct {
	*store
	writes   map[string]write // pending changes, by LevelDB key
	hashes   map[string]*hash // changed hashes; nil means dropped
	sets     uint64           // number of the sets: the store's, or a new one after a flush
	flush    bool             // everything before this transaction is dropped
	released bool             // a number was released
}

// get returns the value of a LevelDB key, with pending writes.
func (t *tx) get(key string) (value string, ok bool, err error) {
	// A transaction sees its own writes.
	if w, pending := t.writes[key]; pending {
		return w.value, !w.deleted, nil
	}
	b, err := t.db.Get([]byte(key), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return "", false, nil
	}
	return string(b), err == nil, err
}

// hash returns the metadata of a hash, with pending changes.
func (t *tx) hash(key string) (hash, bool) {
	if h, changed := t.hashes[key]; changed {
		if h == nil {
			return hash{}, false
		}
		return *h, true
	}
	h, ok := t.store.hashes[key]
	return h, ok
}

// newNumber returns a number that was never used. It may be lost if the transaction fails.
func (t *tx) newNumber() uint64 {
	t.last++
	return t.last
}

// hget returns a field.
func (t *tx) hget(key, field string) (string, bool, error) {
	h, ok := t.hash(key)
	if !ok {
		return "", false, nil
	}
	return t.get(entry(h.number, field))
}

// hset sets a field and reports whether it is new.
func (t *tx) hset(key, field, value string) (bool, error) {
	h, ok := t.hash(key)
	if !ok {
		// A new hash gets a number that was never used, so entries of a dropped one cannot
		// reappear.
		h = hash{number: t.newNumber()}
	}
	at := entry(h.number, field)
	_, found, err := t.get(at)
	if err != nil {
		return false, err
	}
	// An overwritten field does not change the length, which is all that the metadata contains.
	if !found {
		h.count++
		t.hashes[key] = &h
	}
	t.writes[at] = write{value: value}
	return !found, nil
}

// hdel deletes a field and reports whether it existed.
func (t *tx) hdel(key, field string) (bool, error) {
	h, ok := t.hash(key)
	if !ok {
		return false, nil
	}
	at := entry(h.number, field)
	_, found, err := t.get(at)
	if err != nil || !found {
		return false, err
	}
	t.writes[at] = write{deleted: true}
	// A hash without fields does not exist.
	if h.count--; h.count == 0 {
		t.hashes[key] = nil
	} else {
		t.hashes[key] = &h
	}
	return true, nil
}

// drop deletes a hash or a set and reports whether it existed.
func (t *tx) drop(key string) (bool, error) {
	// The entries of a hash are deleted later, by the sweeper.
	if h, ok := t.hash(key); ok {
		t.writes[releasedPrefix+string(number(h.number))] = write{}
		t.hashes[key], t.released = nil, true
		return true, nil
	}
	// A set has no number of its own, so each of its members is deleted. Collect them first: each
	// must not see changes while it iterates.
	var members []string
	err := t.each(t.sets, setKey(key), "", func(member, _ string) bool {
		members = append(members, member)
		return true
	})
	for _, m := range members {
		t.writes[entry(t.sets, setKey(key)+m)] = write{deleted: true}
	}
	return len(members) > 0, err
}

// each calls fn for the entries of a number whose field starts with prefix, in order, beginning at
// from, until fn returns false. Fields are passed without the prefix. Pending writes of the
// transaction are included.
func (t *tx) each(number uint64, prefix, from string, fn func(field, value string) bool) error {
	lead := entry(number, prefix) // of all keys in the range
	within := util.BytesPrefix([]byte(lead))
	within.Start = []byte(lead + from)
	// Sort the fields with pending writes, and merge them with those in the database. Callers rely
	// on the order: members of a set must be adjacent, and a cursor is a field to resume at.
	var pending []string
	for key := range t.writes {
		if field, ok := strings.CutPrefix(key, lead); ok && field >= from {
			pending = append(pending, field)
		}
	}
	slices.Sort(pending)
	it := t.db.NewIterator(within, nil)
	defer it.Release()
	for stored := it.Next(); stored || len(pending) > 0; {
		var field, value string
		if stored {
			field = string(it.Key()[len(lead):])
		}
		if len(pending) > 0 && (!stored || pending[0] <= field) {
			// The pending write comes first, or replaces the stored entry of the same field.
			if stored && pending[0] == field {
				stored = it.Next()
			}
			field, pending = pending[0], pending[1:]
			w := t.writes[lead+field]
			if w.deleted {
				continue
			}
			value = w.value
		} else {
			value = string(it.Value())
			stored = it.Next()
		}
		if !fn(field, value) {
			break
		}
	}
	return it.Error()
}

// eachHash calls fn for the key of each hash, with pending changes, in any order.
func (t *tx) eachHash(fn func(key string)) {
	for key := range t.store.hashes {
		if _, changed := t.hashes[key]; !changed {
			fn(key)
		}
	}
	for key, h := range t.hashes {
		if h != nil {
			fn(key)
		}
	}
}

// flushAll drops everything. Writes of this transaction before it are discarded, and those after it
// are kept.
func (t *tx) flushAll() {
	clear(t.writes)
	clear(t.hashes)
	t.flush, t.released = true, true
	// Release the number of every hash, and that of the sets.
	for key, h := range t.store.hashes {
		t.writes[releasedPrefix+string(number(h.number))] = write{}
		t.hashes[key] = nil
	}
	t.writes[releasedPrefix+string(number(t.store.sets))] = write{}
	// Sets that are written after the flush belong to a number of their own, so that they are not
	// swept with the old ones.
	t.sets = t.newNumber()
}

// commit writes the transaction in one batch, and then updates the metadata in memory.
func (t *tx) commit() error {
	// All changes are in one batch, which LevelDB writes atomically. If the process is killed, the
	// journal has all of it or none.
	batch := &leveldb.Batch{}
	if t.flush {
		batch.Put([]byte(setsKey), number(t.sets))
	}
	for key, w := range t.writes {
		if w.deleted {
			batch.Delete([]byte(key))
		} else {
			batch.Put([]byte(key), []byte(w.value))
		}
	}
	for key, h := range t.hashes {
		if h == nil {
			batch.Delete([]byte(hashPrefix + key))
		} else {
			// The number and the length, see store.read.
			batch.Put([]byte(hashPrefix+key), binary.BigEndian.AppendUint64(number(h.number), uint64(h.count)))
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	// The failpoints let tests kill the process on either side of the write.
	if err := failpoint.Hit("embedded.redis.write.before"); err != nil {
		return err
	}
	if err := t.db.Write(batch, nil); err != nil {
		return err
	}
	// The batch is written. Now update the metadata in memory, which cannot fail.
	t.store.sets = t.sets
	for key, h := range t.hashes {
		if h == nil {
			delete(t.store.hashes, key)
		} else {
			t.store.hashes[key] = *h
		}
	}
	if t.released {
		t.wakeSweeper()
	}
	return failpoint.Hit("embedded.redis.write.after")
}
