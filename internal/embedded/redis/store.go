package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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
)

// Keys in LevelDB. They are part of the format on disk: a change needs a new layout version.
//
// Each hash has a number that prefixes its entries, and all sets together have one. So dropping a
// hash is one small write, regardless of its size: its number is released, and its entries are
// deleted in the background. A number is never reused.
//
//	v                                 layout version
//	k KEY                             number and length of a hash
//	s                                 number of the sets
//	g NUMBER                          a released number whose entries are still to be deleted
//	f NUMBER FIELD                    a field of a hash
//	f NUMBER length KEY MEMBER        a member of a set
const (
	layoutKey      = "v"
	hashPrefix     = "k"
	setsKey        = "s"
	releasedPrefix = "g"
	entryPrefix    = "f"

	layout = "1"
)

// store holds the hashes and sets of the server. Each command or script is one LevelDB batch, which
// is atomic even if the process is killed. Entries are read on demand.
//
// Every block of the files has a checksum that is verified on each read. When damage is found, the
// files are set aside and the store continues empty, like a Redis that has lost its data.
type store struct {
	dir string // empty means in memory
	log *slog.Logger

	// mu is held for reading by read-only commands, and for writing by all others. It protects the
	// fields below up to closed.
	mu     sync.RWMutex
	db     *leveldb.DB     // nil while the files cannot be opened
	memory storage.Storage // of a store in memory; nil otherwise
	broken error           // why db is nil
	damage error           // why files were last set aside; nil if they never were
	hashes map[string]hash
	sets   uint64 // number of the sets
	last   uint64 // highest number in use
	closed bool

	cursors cursors
	scripts *lru.Cache[string, *lua.FunctionProto] // compiled scripts, by source

	wake       chan struct{}  // signals that a number was released
	stop       chan struct{}  // closed by close
	background sync.WaitGroup // the sweeper
}

// hash is the metadata of a hash. All of it is in memory, since there are few hashes.
type hash struct {
	number uint64 // prefix of its entries
	count  int64  // number of its fields
}

// errClosed is returned by commands after Close.
var errClosed = errors.New("the embedded Redis is stopped")

// openStore opens the store in dir and starts the sweeper.
func openStore(dir string, log *slog.Logger) (*store, error) {
	scripts, err := lru.New[string, *lua.FunctionProto](maxScripts)
	if err != nil {
		return nil, err
	}
	s := &store{
		dir: dir, log: log, cursors: newCursors(), scripts: scripts,
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if dir == "" {
		s.memory = storage.NewMemStorage()
	} else if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return nil, err
	}
	if err := s.openOrSetAside(); err != nil {
		return nil, err
	}
	s.background.Go(s.sweep)
	return s, nil
}

// openOrSetAside opens the files. If they are damaged or of an unknown format, it sets them aside
// and starts with new ones.
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

// errUnknownFormat means that another program or another version wrote the files.
var errUnknownFormat = errors.New("unknown format")

// damaged reports whether err means that the files are unusable. A full disk or a missing
// permission is temporary instead.
func damaged(err error) bool {
	return errors.As(err, new(*leveldberrors.ErrCorrupted)) || errors.As(err, new(*storage.ErrCorrupted)) ||
		errors.Is(err, fs.ErrNotExist) || // a file that the manifest lists is missing
		errors.Is(err, errUnknownFormat)
}

// setAside renames the folder. Only the most recent damaged folder is kept.
func (s *store) setAside(cause error) error {
	// The files are kept for an analysis. They are not read again.
	aside := s.dir + ".damaged"
	s.damage = cause
	s.log.Warn("embedded redis: damaged files were set aside; the view will be rebuilt from the log",
		"folder", s.dir, "set_aside", aside, "damage", cause)
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

// Settings of LevelDB. They bound its memory to one block cache and up to three write buffers.
const (
	cacheBytes  = 16 << 20 // cache of uncompressed blocks
	bufferBytes = 8 << 20  // changes in memory before they are written to a table
	tableBytes  = 8 << 20  // size of one table file
	openTables  = 128      // open files
	filterBits  = 10       // bits per key of the Bloom filters: 1 % false positives
)

// open opens the files and reads the metadata. db remains nil after an error.
func (s *store) open() error {
	options := &opt.Options{
		BlockCacheCapacity: cacheBytes, WriteBuffer: bufferBytes,
		CompactionTableSize: tableBytes, OpenFilesCacheCapacity: openTables,
		Filter: filter.NewBloomFilter(filterBits),
		// Otherwise LevelDB would skip a damaged part of its journal and apply later writes:
		// positions without documents.
		Strict: opt.StrictAll,
	}
	var db *leveldb.DB
	var err error
	// Without a directory, the same code runs on storage in memory.
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

// read loads the metadata, or initialises a new store.
func (s *store) read(db *leveldb.DB) error {
	// Forget the metadata of files that were set aside.
	s.hashes, s.sets, s.last = map[string]hash{}, 0, 0
	version, err := db.Get([]byte(layoutKey), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		begin := &leveldb.Batch{}
		begin.Put([]byte(layoutKey), []byte(layout))
		s.sets, s.last = 1, 1
		begin.Put([]byte(setsKey), number(s.sets))
		// A database without a layout must be empty. Otherwise another program wrote it.
		if empty, err := isEmpty(db); err != nil || !empty {
			return errors.Join(err, fmt.Errorf("%w: no layout version", errUnknownFormat))
		}
		return db.Write(begin, nil)
	}
	if err != nil {
		return err
	}
	// Files of another layout cannot be read. They are set aside like damaged ones.
	if string(version) != layout {
		return fmt.Errorf("%w: layout %.20q", errUnknownFormat, version)
	}
	// last must exceed every number in use, also those that are still to be swept.
	sets, err := db.Get([]byte(setsKey), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return fmt.Errorf("%w: the number of the sets is missing", errUnknownFormat)
	}
	if err != nil {
		return err
	}
	if len(sets) != 8 {
		return fmt.Errorf("%w: the number of the sets has %d bytes, want 8", errUnknownFormat, len(sets))
	}
	s.sets = binary.BigEndian.Uint64(sets)
	s.last = s.sets
	// There are few hashes, so their metadata fits in memory. Entries are not read.
	each := db.NewIterator(util.BytesPrefix([]byte(hashPrefix)), nil)
	defer each.Release()
	for each.Next() {
		v := each.Value()
		if len(v) != 16 {
			return fmt.Errorf("%w: the metadata of a hash has %d bytes, want 16", errUnknownFormat, len(v))
		}
		// The value is the number and the length, 8 bytes each.
		h := hash{binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))}
		s.hashes[string(each.Key()[1:])] = h
		s.last = max(s.last, h.number)
	}
	// A sweep that was interrupted by the end of the process continues.
	released := db.NewIterator(util.BytesPrefix([]byte(releasedPrefix)), nil)
	defer released.Release()
	for released.Next() {
		s.last = max(s.last, binary.BigEndian.Uint64(released.Key()[1:]))
		s.wakeSweeper()
	}
	return errors.Join(each.Error(), released.Error())
}

// isEmpty reports whether the database has no keys.
func isEmpty(db *leveldb.DB) (bool, error) {
	all := db.NewIterator(nil, nil)
	defer all.Release()
	return !all.Next(), all.Error()
}

// view runs a read-only command, and repeats it on an empty store if it has found damage. Read-only
// commands run concurrently.
func (s *store) view(read func(*tx) error) error {
	for {
		s.mu.RLock()
		db, err := s.db, s.usable()
		if err == nil {
			err = read(&tx{store: s, sets: s.sets})
		}
		s.mu.RUnlock()
		if again := s.heal(db, err); !again {
			return err
		}
	}
}

// update runs a command or script atomically: all of its changes are written, or none if it fails.
func (s *store) update(change func(*tx) error) error {
	for {
		s.mu.Lock()
		db, err := s.db, s.usable()
		if err == nil {
			t := &tx{store: s, sets: s.sets, writes: map[string]write{}, hashes: map[string]*hash{}}
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

// usable returns an error if the store cannot be used. The caller holds mu.
func (s *store) usable() error {
	switch {
	case s.closed:
		return errClosed
	case s.db == nil:
		return s.broken
	}
	return nil
}

// heal reopens the files after an I/O error, since LevelDB does not recover from one by itself. was
// is the database that the command used. heal reports whether the command should be retried, which
// is so after damaged files were replaced by an empty store.
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
	// Another command has met the same error and reopened the files.
	if s.db != was {
		return s.db != nil
	}
	if s.db != nil {
		// Closing may fail for the same reason. The files are reopened all the same.
		if closing := s.db.Close(); closing != nil {
			s.log.Debug("embedded redis: close", "error", closing)
		}
		s.db = nil
	}
	replace := damaged(err)
	// Damage is permanent, so continue with new files. Any other error may be temporary: reopen the
	// same files.
	if replace {
		if err := s.setAside(err); err != nil {
			s.broken = err
			return false
		}
	}
	if s.broken = s.openOrSetAside(); s.broken != nil {
		s.broken = fmt.Errorf("open %s: %w", s.dir, s.broken)
		return false
	}
	return replace
}

// close stops the sweeper and closes the files. Commands fail with errClosed afterwards.
func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	s.mu.Unlock()
	// Wait without the lock, because the sweeper takes it.
	s.background.Wait()
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

// number returns the encoding of a number, whose order is that of the numbers.
func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// entry returns the LevelDB key of a field.
func entry(number uint64, field string) string {
	b := make([]byte, 0, len(entryPrefix)+8+len(field))
	b = append(b, entryPrefix...)
	b = binary.BigEndian.AppendUint64(b, number)
	return string(append(b, field...))
}

// setKey returns the prefix of a set's members. The length makes it unambiguous.
func setKey(key string) string {
	return string(binary.AppendUvarint(nil, uint64(len(key)))) + key
}

// readSetKey returns the key that setKey encoded at the start of a field. The member follows it.
func readSetKey(field string) (key string, ok bool) {
	length, n := binary.Uvarint([]byte(field[:min(len(field), binary.MaxVarintLen64)]))
	if n <= 0 || length > uint64(len(field)-n) {
		return "", false
	}
	return field[n : n+int(length)], true
}

// wakeSweeper wakes the sweeper. It does not block if the sweeper is already woken.
func (s *store) wakeSweeper() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// The sweeper deletes entries in small batches with pauses, so that commands are not delayed.
const (
	sweepBatch = 5000 // entries
	sweepPause = 5 * time.Millisecond
)

// sweep deletes the entries of released numbers.
func (s *store) sweep() {
	for {
		// Sleep until a number is released.
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		// Continue until no released number is left, or until an error.
		for more := true; more; {
			err := s.update(func(*tx) (err error) {
				more, err = s.sweepSome()
				return err
			})
			if err != nil {
				s.log.Warn("embedded redis: dropped data stays on disk until the next start", "error", err)
				break
			}
			select {
			case <-s.stop:
				return
			case <-time.After(sweepPause):
			}
		}
	}
}

// sweepSome deletes one batch of the first released number's entries. After its last entry, it
// deletes the record of the release. It reports whether to call it again. The caller holds mu.
func (s *store) sweepSome() (more bool, err error) {
	released := s.db.NewIterator(util.BytesPrefix([]byte(releasedPrefix)), nil)
	defer released.Release()
	if !released.Next() {
		return false, released.Error()
	}
	// The key of a release and the keys of its entries end with the same number.
	batch := &leveldb.Batch{}
	entries := s.db.NewIterator(util.BytesPrefix([]byte(entryPrefix+string(released.Key()[1:]))), nil)
	defer entries.Release()
	for batch.Len() < sweepBatch && entries.Next() {
		batch.Delete(entries.Key())
	}
	if err := entries.Error(); err != nil {
		return false, err
	}
	// These were the last entries of the number.
	if batch.Len() < sweepBatch {
		batch.Delete(released.Key())
	}
	return true, s.db.Write(batch, nil)
}
