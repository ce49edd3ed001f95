package redis

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// Store is a store without a server.
type Store struct{ s *store }

// Open opens a store.
func Open(dir string, log *slog.Logger) (Store, error) {
	s, err := openStore(dir, log)
	return Store{s}, err
}

// Do runs a command, given as words. The answer is what writeReply would write.
func (h Store) Do(words ...string) (answer any, err error) {
	if words[0] == "EVAL" {
		return h.s.eval(words[1:])
	}
	within := h.s.view
	if commands[words[0]].writes {
		within = h.s.update
	}
	err = within(func(t *tx) (err error) {
		answer, err = t.call(strings.ToUpper(words[0]), words[1:])
		return err
	})
	return answer, err
}

// Damage returns why files were set aside, or nil if they were not.
func (h Store) Damage() error { return h.s.damage }

// Close closes the store.
func (h Store) Close() error { return h.s.close() }

// Compact moves all writes into tables, as LevelDB does after many writes.
func (h Store) Compact() error {
	return h.s.db.CompactRange(util.Range{})
}

// Entries returns the number of keys in LevelDB.
func (h Store) Entries() (n int, err error) {
	each := h.s.db.NewIterator(nil, nil)
	defer each.Release()
	for each.Next() {
		n++
	}
	return n, each.Error()
}

// IsReplyError reports whether an error is the client's fault.
func IsReplyError(err error) bool { return errors.As(err, new(*replyError)) }

// CompleteRecords exports completeRecords.
func CompleteRecords(file []byte) (end int, torn bool) { return completeRecords(file) }

// SetLayout gives a store another version and closes it.
func SetLayout(h Store, layout string) { overwrite(h, layoutKey, layout) }

// SetSetsNumber replaces the number of the sets and closes the store.
func SetSetsNumber(h Store, value string) { overwrite(h, setsKey, value) }

// overwrite replaces a value in LevelDB, or deletes it if it is empty, and closes the store.
func overwrite(h Store, key, value string) {
	err := h.s.db.Delete([]byte(key), nil)
	if value != "" {
		err = h.s.db.Put([]byte(key), []byte(value), nil)
	}
	if err = errors.Join(err, h.Close()); err != nil {
		panic(err)
	}
}
