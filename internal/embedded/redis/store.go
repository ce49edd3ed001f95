package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/syndtr/goleveldb/leveldb"
	leveldberrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
	lua "github.com/yuin/gopher-lua"

	"github.com/millrace/millrace/internal/failpoint"
)

// What stands in LevelDB. A hash or the sets have a number, under which their entries stand, so that dropping them takes one small
// write whatever they hold: the number goes, and what stands under it is swept up later.
//
//	v                                 the layout
//	k KEY                             number and count of a hash
//	s                                 number of the sets
//	g NUMBER                          what stands under the number is to be swept up
//	f NUMBER FIELD                    a field of a hash
//	f NUMBER length KEY MEMBER        a member of a set
const (
	layoutKey  = "v"
	hashPrefix = "k"
	setsKey    = "s"
	junkPrefix = "g"
	entryLead  = "f"

	layout = "1"
)

// store is the hashes and sets of the server. Each write is one batch of LevelDB's, which is there whole or not at all after the process
// was killed; nothing is loaded at the start, so that it takes no longer with a million documents than with none.
//
// Every block of its files has a checksum that is looked at whenever it is read. Files that are damaged are set aside as soon as that
// is seen, and the store goes on empty: to its clients it is a Redis that has lost everything.
type store struct {
	dir string // empty: in memory
	log *slog.Logger

	mu     sync.RWMutex
	db     *leveldb.DB // nil after Close, or while the files cannot be opened
	memory storage.Storage
	broken error // why db is nil, or is no use any more
	damage error // why files were set aside last; nil if they never were
	hashes map[string]hash
	sets   uint64
	last   uint64 // number given
	closed bool

	cursors cursors
	scripts *lru.Cache[string, *lua.FunctionProto]

	sweeping chan struct{} // there is something to sweep up
	stop     chan struct{}
	swept    sync.WaitGroup
}

// hash is where a hash stands. There are few of them: each is known in memory.
type hash struct {
	number uint64
	count  int64
}

// errClosed answers what comes after Close.
var errClosed = errors.New("the embedded Redis is stopped")

func openStore(dir string, log *slog.Logger) (*store, error) {
	scripts, err := lru.New[string, *lua.FunctionProto](mostScripts)
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, log: log, cursors: newCursors(), scripts: scripts, sweeping: make(chan struct{}, 1), stop: make(chan struct{})}
	if dir == "" {
		s.memory = storage.NewMemStorage()
	} else if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return nil, err
	}
	if err := s.openOrSetAside(); err != nil {
		return nil, err
	}
	s.swept.Go(s.sweep)
	return s, nil
}

// openOrSetAside opens the files, and sets them aside where they are damaged, or not ours.
func (s *store) openOrSetAside() error {
	err := s.open()
	if !damaged(err) {
		return err
	}
	if err := s.setAside(err); err != nil {
		return err
	}
	return s.open()
}

var errForeign = errors.New("not of this version")

// damaged reports whether an error says that what is on disk cannot be used. That there is no room, or no right to read, passes.
func damaged(err error) bool {
	return errors.As(err, new(*leveldberrors.ErrCorrupted)) || errors.As(err, new(*storage.ErrCorrupted)) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errForeign)
}

// setAside moves the files away. Those of the last time are all that is kept.
func (s *store) setAside(cause error) error {
	aside := s.dir + ".damaged"
	s.damage = cause
	s.log.Warn("embedded redis: its files are damaged and set aside; the views are read again from the log", "folder", s.dir, "set_aside", aside, "damage", cause)
	if s.memory != nil {
		s.memory = storage.NewMemStorage()
		return nil
	}
	err := os.RemoveAll(aside)
	if err == nil {
		err = os.Rename(s.dir, aside)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set aside damaged files: %w", err)
	}
	return nil
}

// How much memory LevelDB takes: the cache of what is read, and up to three buffers of what is written.
const (
	cacheBytes  = 16 << 20
	bufferBytes = 8 << 20
	tableBytes  = 8 << 20
	openTables  = 128
	filterBits  = 10
)

func (s *store) open() error {
	options := &opt.Options{
		BlockCacheCapacity: cacheBytes, WriteBuffer: bufferBytes, CompactionTableSize: tableBytes, OpenFilesCacheCapacity: openTables,
		Filter: filter.NewBloomFilter(filterBits),
		// Without it a damaged part of the journal would be passed over, and what was written later be taken: positions without documents.
		Strict: opt.StrictAll,
	}
	var db *leveldb.DB
	var err error
	if s.memory != nil {
		db, err = leveldb.Open(s.memory, options)
	} else {
		if err := trimAfterKill(s.dir); err != nil {
			return err
		}
		db, err = leveldb.OpenFile(s.dir, options)
	}
	if err != nil {
		return err
	}
	if err := s.read(db); err != nil {
		return errors.Join(err, db.Close())
	}
	s.db, s.broken = db, nil
	return nil
}

// read reads what is known in memory, and begins a store that is new.
func (s *store) read(db *leveldb.DB) error {
	s.hashes, s.sets, s.last = map[string]hash{}, 0, 0
	version, err := db.Get([]byte(layoutKey), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		begin := &leveldb.Batch{}
		begin.Put([]byte(layoutKey), []byte(layout))
		s.sets, s.last = 1, 1
		begin.Put([]byte(setsKey), number(s.sets))
		if empty, err := isEmpty(db); err != nil || !empty {
			return errors.Join(err, fmt.Errorf("%w: it does not say its layout", errForeign))
		}
		return db.Write(begin, nil)
	}
	if err != nil {
		return err
	}
	if string(version) != layout {
		return fmt.Errorf("%w: layout %.20q", errForeign, version)
	}
	sets, err := db.Get([]byte(setsKey), nil)
	if err != nil || len(sets) != 8 {
		return fmt.Errorf("%w: the number of the sets: %w", errForeign, err)
	}
	s.sets = binary.BigEndian.Uint64(sets)
	s.last = s.sets
	each := db.NewIterator(util.BytesPrefix([]byte(hashPrefix)), nil)
	defer each.Release()
	for each.Next() {
		v := each.Value()
		if len(v) != 16 {
			return fmt.Errorf("%w: a hash of %d bytes", errForeign, len(v))
		}
		h := hash{binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))} //nolint:gosec // it was written as one
		s.hashes[string(each.Key()[1:])] = h
		s.last = max(s.last, h.number)
	}
	junk := db.NewIterator(util.BytesPrefix([]byte(junkPrefix)), nil)
	defer junk.Release()
	for junk.Next() {
		s.last = max(s.last, binary.BigEndian.Uint64(junk.Key()[1:]))
		s.wakeSweeper()
	}
	return errors.Join(each.Error(), junk.Error())
}

func isEmpty(db *leveldb.DB) (bool, error) {
	any := db.NewIterator(nil, nil)
	defer any.Release()
	return !any.Next(), any.Error()
}

// view runs a command that only reads.
func (s *store) view(read func(*tx) error) error {
	for {
		s.mu.RLock()
		db, err := s.db, s.usable()
		if err == nil {
			err = read(&tx{store: s})
		}
		s.mu.RUnlock()
		if again := s.heal(db, err); !again {
			return err
		}
	}
}

// update runs a command, or a script of them, that may write: all of it or nothing.
func (s *store) update(change func(*tx) error) error {
	for {
		s.mu.Lock()
		db, err := s.db, s.usable()
		if err == nil {
			t := &tx{store: s, writes: map[string]write{}, hashes: map[string]*hash{}}
			if err = change(t); err == nil {
				err = t.commit()
			}
		}
		s.mu.Unlock()
		if again := s.heal(db, err); !again {
			return err
		}
	}
}

// usable says why there is nothing to work on. It holds mu.
func (s *store) usable() error {
	switch {
	case s.closed:
		return errClosed
	case s.db == nil:
		return s.broken
	}
	return nil
}

// heal opens the files again after an error of theirs, which LevelDB does not get over by itself, and reports whether the command is
// to be done again: where they were damaged, on an empty store.
func (s *store) heal(was *leveldb.DB, err error) (again bool) {
	var refused *replyError
	if err == nil || errors.Is(err, errClosed) || errors.As(err, &refused) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.db != was { // another command has done it meanwhile
		return s.db != nil
	}
	if s.db != nil {
		if closing := s.db.Close(); closing != nil {
			s.log.Debug("embedded redis: close", "error", closing)
		}
		s.db = nil
	}
	hurt := damaged(err)
	if hurt {
		if err := s.setAside(err); err != nil {
			s.broken = err
			return false
		}
	}
	if s.broken = s.openOrSetAside(); s.broken != nil {
		s.broken = fmt.Errorf("open %s: %w", s.dir, s.broken)
		return false
	}
	return hurt
}

func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	s.mu.Unlock()
	s.swept.Wait()
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func entry(number uint64, field string) string {
	b := make([]byte, 0, len(entryLead)+8+len(field))
	b = append(b, entryLead...)
	b = binary.BigEndian.AppendUint64(b, number)
	return string(append(b, field...))
}

// setKey leads the members of a set.
func setKey(key string) string {
	return string(binary.AppendUvarint(nil, uint64(len(key)))) + key
}

// readSetKey is the key that setKey wrote before a member.
func readSetKey(field string) (key string, ok bool) {
	length, n := binary.Uvarint([]byte(field[:min(len(field), binary.MaxVarintLen64)]))
	if n <= 0 || length > uint64(len(field)-n) {
		return "", false
	}
	return field[n : n+int(length)], true //nolint:gosec // it is no longer than the field
}

// wakeSweeper has what was dropped swept up.
func (s *store) wakeSweeper() {
	select {
	case s.sweeping <- struct{}{}:
	default:
	}
}

// How much is swept up at once, and the rest between, so that commands do not wait for it.
const (
	sweepAtOnce = 5000
	sweepRest   = 5 * time.Millisecond
)

// sweep deletes what stands under numbers that were dropped.
func (s *store) sweep() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.sweeping:
		}
		for more := true; more; {
			err := s.update(func(t *tx) (err error) {
				more, err = s.sweepSome()
				return err
			})
			if err != nil {
				s.log.Warn("embedded redis: what was dropped stays on disk until the next start", "error", err)
				break
			}
			select {
			case <-s.stop:
				return
			case <-time.After(sweepRest):
			}
		}
	}
}

// sweepSome deletes a part. It holds mu.
func (s *store) sweepSome() (more bool, err error) {
	junk := s.db.NewIterator(util.BytesPrefix([]byte(junkPrefix)), nil)
	defer junk.Release()
	if !junk.Next() {
		return false, junk.Error()
	}
	batch := &leveldb.Batch{}
	entries := s.db.NewIterator(util.BytesPrefix([]byte(entryLead+string(junk.Key()[1:]))), nil)
	defer entries.Release()
	for batch.Len() < sweepAtOnce && entries.Next() {
		batch.Delete(entries.Key())
	}
	if err := entries.Error(); err != nil {
		return false, err
	}
	if batch.Len() < sweepAtOnce {
		batch.Delete(junk.Key())
	}
	return true, s.db.Write(batch, nil)
}

// write is what a transaction does to a key of LevelDB.
type write struct {
	value   string
	deleted bool
}

// tx is one command or script. Where writes is nil it only reads.
type tx struct {
	*store
	writes map[string]write
	hashes map[string]*hash // that it has changed; nil: dropped
	flush  bool
	junk   bool
}

func (t *tx) get(key string) (value string, ok bool, err error) {
	if w, mine := t.writes[key]; mine {
		return w.value, !w.deleted, nil
	}
	b, err := t.db.Get([]byte(key), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return "", false, nil
	}
	return string(b), err == nil, err
}

func (t *tx) hash(key string) (hash, bool) {
	if h, mine := t.hashes[key]; mine {
		if h == nil {
			return hash{}, false
		}
		return *h, true
	}
	h, ok := t.store.hashes[key]
	return h, ok
}

func (t *tx) newNumber() uint64 {
	t.last++
	return t.last
}

// hget reads a field.
func (t *tx) hget(key, field string) (string, bool, error) {
	h, ok := t.hash(key)
	if !ok {
		return "", false, nil
	}
	return t.get(entry(h.number, field))
}

// hset writes a field, and reports whether it is new.
func (t *tx) hset(key, field, value string) (bool, error) {
	h, ok := t.hash(key)
	if !ok {
		h = hash{number: t.newNumber()}
	}
	at := entry(h.number, field)
	_, there, err := t.get(at)
	if err != nil {
		return false, err
	}
	if !there {
		h.count++
		t.hashes[key] = &h
	}
	t.writes[at] = write{value: value}
	return !there, nil
}

// hdel deletes a field, and reports whether it was there.
func (t *tx) hdel(key, field string) (bool, error) {
	h, ok := t.hash(key)
	if !ok {
		return false, nil
	}
	at := entry(h.number, field)
	_, there, err := t.get(at)
	if err != nil || !there {
		return false, err
	}
	t.writes[at] = write{deleted: true}
	if h.count--; h.count == 0 {
		t.hashes[key] = nil
	} else {
		t.hashes[key] = &h
	}
	return true, nil
}

// drop drops a hash or a set, and reports whether it was there.
func (t *tx) drop(key string) (bool, error) {
	if h, ok := t.hash(key); ok {
		t.writes[junkPrefix+string(number(h.number))] = write{}
		t.hashes[key], t.junk = nil, true
		return true, nil
	}
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

// each gives the entries under a number whose field begins with a prefix, without the prefix and from a given one on, in order, until
// fn says no. What the transaction itself has written is among them.
func (t *tx) each(number uint64, prefix, from string, fn func(field, value string) bool) error {
	lead := entry(number, prefix)
	within := util.BytesPrefix([]byte(lead))
	within.Start = []byte(lead + from)
	mine := map[string]string{}
	for key, w := range t.writes {
		field, ok := strings.CutPrefix(key, lead)
		if ok && !w.deleted && field >= from {
			mine[field] = w.value
		}
	}
	it := t.db.NewIterator(within, nil)
	defer it.Release()
	for it.Next() {
		key := string(it.Key())
		w, written := t.writes[key]
		switch {
		case written && w.deleted:
			continue
		case written:
			delete(mine, key[len(lead):])
		default:
			w.value = string(it.Value())
		}
		if !fn(key[len(lead):], w.value) {
			return it.Error()
		}
	}
	for field, value := range mine { // scripts do not care for the order
		if !fn(field, value) {
			break
		}
	}
	return it.Error()
}

// flushAll drops everything.
func (t *tx) flushAll() {
	clear(t.writes)
	clear(t.hashes)
	t.flush, t.junk = true, true
	for key, h := range t.store.hashes {
		t.writes[junkPrefix+string(number(h.number))] = write{}
		t.hashes[key] = nil
	}
	t.writes[junkPrefix+string(number(t.sets))] = write{}
}

// commit writes all that the transaction did, in one batch.
func (t *tx) commit() error {
	batch := &leveldb.Batch{}
	sets := t.sets
	if t.flush {
		sets = t.newNumber()
		batch.Put([]byte(setsKey), number(sets))
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
			batch.Put([]byte(hashPrefix+key), binary.BigEndian.AppendUint64(number(h.number), uint64(h.count))) //nolint:gosec // not negative
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := failpoint.Hit("embedded.redis.write.before"); err != nil {
		return err
	}
	if err := t.db.Write(batch, nil); err != nil {
		return err
	}
	t.sets = sets
	for key, h := range t.hashes {
		if h == nil {
			delete(t.store.hashes, key)
		} else {
			t.store.hashes[key] = *h
		}
	}
	if t.junk {
		t.wakeSweeper()
	}
	return failpoint.Hit("embedded.redis.write.after")
}
