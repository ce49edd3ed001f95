// Package eventstore defines the contract of a service's event store.
//
// Store is the contract: append with optimistic concurrency, load a stream, read all events in
// order. A Batch is what one command stores in one transaction: events of streams, the Answer of
// its idempotency key, and snapshots.
//
// The adapters are sqlite (one file, the embedded default) and postgres (production). The suite in
// eventstoretest defines their behaviour. internal/adapter contains their common code.
//
// Invariants:
//
//   - A batch is stored completely or not at all, and an acknowledged batch is durable.
//   - A stream's versions have no gaps, and each has one event.
//   - Read skips nothing: no event appears later in front of one that it has returned.
package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
)

// Store keeps the event streams of one service. All methods are safe for concurrent use.
type Store interface {
	// Append stores the whole batch in one transaction, or nothing. It fails with a *AnsweredError
	// where the idempotency key has an answer already; else with a *ConflictError where a stream is
	// not at its expected version. An ErrInvalid says that the batch breaks a limit. After any
	// other error, ctx's among them, the batch may be stored all the same: try again with the same
	// key. Do not change a batch that was given: the store may still read it when ctx has ended.
	Append(ctx context.Context, b Batch) (Appended, error)

	// Load reads a stream's events with a version above after, in order. A stream that does not
	// exist has none.
	Load(ctx context.Context, stream string, after uint64) ([]event.Event, error)

	// LoadSnapshot reads the newest snapshot of a stream; ok is false if there is none.
	LoadSnapshot(ctx context.Context, stream string) (s Snapshot, ok bool, err error)

	// LoadAnswer reads what was answered under an idempotency key; ok is false if the key is new.
	LoadAnswer(ctx context.Context, key string) (a Answer, ok bool, err error)

	// Read reads all streams' events after a position, at most limit of them, in the order of
	// positions. An event that it has not returned will never stand before one that it has,
	// whatever writers are under way.
	Read(ctx context.Context, after event.Position, limit int) ([]event.Event, error)

	// Head is the position of the last event that Read can return; zero in an empty store.
	Head(ctx context.Context) (event.Position, error)

	// Stats counts what Read can return after a position. It looks at every one of these events: it
	// is for people, not for hot paths.
	Stats(ctx context.Context, after event.Position) (Stats, error)

	// Known reports of each event whether the store has it: the same id at the same version of the
	// same stream, at the same position. What else the event carries is not compared.
	Known(ctx context.Context, events []event.Event) ([]bool, error)

	// Epoch names the history that the store holds. It changes where another store has taken its
	// place, or where it may have lost what it held (a failover, a restore), so that a reader who
	// sees another epoch compares before it goes on. The same epoch is not a proof: a copy of the
	// store's files has the epoch of the original.
	Epoch(ctx context.Context) (string, error)

	// Secret returns a key that is known only to processes that may read the store. The relay signs
	// its position records and announcements with it, because other producers may write to that
	// topic. A copy of the store has the same secret.
	Secret(ctx context.Context) ([]byte, error)

	// Wait blocks until Read(after) may return events. It may return early.
	Wait(ctx context.Context, after event.Position) error

	// Close waits for calls in progress and releases the store's resources.
	Close() error
}

// Stats counts events.
type Stats struct {
	Events         uint64
	NewestRecorded time.Time // the latest RecordedAt among them; zero if there are none
}

// Batch is what one command stores.
type Batch struct {
	// Streams to append to; each at most once. Empty where the command changed nothing but has an
	// answer to keep.
	Streams []StreamAppend
	// Answer is stored under its key in the same transaction, unless the key is empty.
	Answer Answer
	// Snapshots are kept in the same transaction; each replaces the stream's older one.
	Snapshots []Snapshot
}

// StreamAppend appends events to one stream. Version, Position and Aggregate of the events are the
// store's to fill.
type StreamAppend struct {
	Stream          string
	ExpectedVersion uint64 // of the last event present; 0 for a new stream
	Events          []event.Event
}

// Appended tells where the batch stands.
type Appended struct {
	// Position of the last event of the batch. For a batch without events: the head of the store at
	// that moment.
	Position event.Position
}

// Answer is what a command answered, kept so that the same idempotency key gives the same answer
// again.
type Answer struct {
	Key         string // at most 200 bytes
	Fingerprint []byte // hash of the request: the same key with another fingerprint is the caller's error
	Response    []byte // the handler's own encoding
	// Stream and Version the command left behind, for the token.
	Stream   string
	Version  uint64
	Position event.Position // filled by the store
}

// Snapshot is the folded state of a stream at a version, so that a long stream need not be read
// whole.
type Snapshot struct {
	Stream  string
	Version uint64
	Schema  int    // of State; the reader ignores a snapshot whose schema it does not know
	State   []byte // the service's own encoding
}

// ConflictError means that another writer appended to the stream first.
type ConflictError struct {
	Stream   string
	Expected uint64
	Actual   uint64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %q is at version %d, not %d", e.Stream, e.Actual, e.Expected)
}

// AnsweredError means that the idempotency key of the batch already has an answer.
type AnsweredError struct{ Answer Answer }

func (e *AnsweredError) Error() string {
	return fmt.Sprintf("idempotency key %q is answered already", e.Answer.Key)
}

// ErrClosed is returned by a store that was closed.
var ErrClosed = errors.New("event store is closed")

// ErrFull is wrapped by the error of an append for which the store's disk had no room. Nothing of
// it was stored.
var ErrFull = errors.New("event store's disk is full")

// ErrReplaced means that the server lacks events that this process committed or read: it was
// restored from a backup, failed over to a replica that was behind, or is another server. Reads and
// appends fail until the events are back.
var ErrReplaced = errors.New("event store lost committed events")
