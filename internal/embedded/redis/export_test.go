package redis

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// Held is a store without a server.
type Held struct{ s *store }

// Open opens a store.
func Open(dir string, log *slog.Logger) (Held, error) {
	s, err := openStore(dir, log)
	return Held{s}, err
}

// Do runs a command, given as words. The answer is what writeAnswer would write.
func (h Held) Do(words ...string) (answer any, err error) {
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
func (h Held) Damage() error { return h.s.damage }

// Close closes the store.
func (h Held) Close() error { return h.s.close() }

// Compact moves all writes into tables, as LevelDB does after many writes.
func (h Held) Compact() error {
	return h.s.db.CompactRange(util.Range{})
}

// Entries returns the number of keys in LevelDB.
func (h Held) Entries() (n int, err error) {
	each := h.s.db.NewIterator(nil, nil)
	defer each.Release()
	for each.Next() {
		n++
	}
	return n, each.Error()
}

// Refused reports whether an error is the client's fault.
func Refused(err error) bool { return errors.As(err, new(*replyError)) }

// WholeRecords exports wholeRecords.
func WholeRecords(file []byte) (end int, torn bool) { return wholeRecords(file) }

// SetLayout gives a store another version and closes it.
func SetLayout(h Held, layout string) { overwrite(h, layoutKey, layout) }

// SetSetsNumber replaces the number of the sets and closes the store.
func SetSetsNumber(h Held, value string) { overwrite(h, setsKey, value) }

// overwrite replaces a value in LevelDB, or deletes it if it is empty, and closes the store.
func overwrite(h Held, key, value string) {
	err := h.s.db.Delete([]byte(key), nil)
	if value != "" {
		err = h.s.db.Put([]byte(key), []byte(value), nil)
	}
	if err = errors.Join(err, h.Close()); err != nil {
		panic(err)
	}
}
