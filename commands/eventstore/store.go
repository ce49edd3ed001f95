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
	// Append stores the whole batch in one transaction, or nothing. It returns an *AnsweredError if
	// the idempotency key already has an answer. Otherwise it returns a *ConflictError if a stream
	// is not at its expected version. ErrInvalid means that the batch breaks a limit. After any
	// other error, including ctx's, the batch may be stored: retry with the same key. Do not change
	// the batch afterwards, because the store may still read it after ctx has ended.
	Append(ctx context.Context, b Batch) (Appended, error)

	// Load returns the events of a stream with a version above after, in order. A stream that does
	// not exist has none.
	Load(ctx context.Context, stream string, after uint64) ([]event.Event, error)

	// LoadSnapshot returns the newest snapshot of a stream. ok is false if there is none.
	LoadSnapshot(ctx context.Context, stream string) (s Snapshot, ok bool, err error)

	// LoadAnswer returns the answer of an idempotency key. ok is false if the key is new.
	LoadAnswer(ctx context.Context, key string) (a Answer, ok bool, err error)

	// Read returns the events of all streams after a position, at most limit, in the order of
	// positions. An event that it has not returned never appears later before one that it has,
	// regardless of concurrent writers.
	Read(ctx context.Context, after event.Position, limit int) ([]event.Event, error)

	// Head returns the position of the last event that Read can return. It is zero if the store is
	// empty.
	Head(ctx context.Context) (event.Position, error)

	// Stats counts the events that Read can return after a position. It reads every one of them, so
	// it is not for hot paths.
	Stats(ctx context.Context, after event.Position) (Stats, error)

	// Known reports for each event whether the store has it: the same id at the same version of the
	// same stream, at the same position. Other fields are not compared.
	Known(ctx context.Context, events []event.Event) ([]bool, error)

	// Epoch identifies the history in the store. It changes if another store has replaced it, or if
	// it may have lost events (a failover, a restore). A reader that sees another epoch must
	// compare before it continues. An equal epoch proves nothing: a copy of the store's files has
	// the epoch of the original.
	Epoch(ctx context.Context) (string, error)

	// Secret returns a key that is known only to processes that may read the store. The relay signs
	// its position records and announcements with it, because other producers may write to that
	// topic. A copy of the store has the same secret.
	Secret(ctx context.Context) ([]byte, error)

	// Wait blocks until Read(after) may return events. It may return early. It returns ErrClosed
	// when the store is closed.
	Wait(ctx context.Context, after event.Position) error

	// Close waits for calls in progress and releases the store's resources.
	Close() error
}

// Stats describes a range of events.
type Stats struct {
	Events         uint64
	NewestRecorded time.Time // latest RecordedAt of the events; zero if there are none
}

// Batch is what one command stores.
type Batch struct {
	// Streams to append to, each at most once. It is empty if the command changed nothing but has
	// an answer to keep.
	Streams []StreamAppend
	// Answer is stored under its key in the same transaction, unless the key is empty.
	Answer Answer
	// Snapshots are stored in the same transaction. Each replaces an older one of its stream.
	Snapshots []Snapshot
}

// StreamAppend appends events to one stream. The store sets Version, Position and Aggregate of the
// events.
type StreamAppend struct {
	Stream          string
	ExpectedVersion uint64 // version of the stream's last event; 0 for a new stream
	Events          []event.Event
}

// Appended is the result of an append.
type Appended struct {
	// Position of the batch's last event. For a batch without events it is the store's head at that
	// moment.
	Position event.Position
}

// Answer is the response to a command. It is kept so that a command with the same idempotency key
// gets the same response.
type Answer struct {
	Key string // idempotency key, at most 200 bytes
	// Fingerprint is a hash of the request. The same key with another fingerprint is an error of
	// the caller.
	Fingerprint []byte
	Response    []byte // in the handler's own encoding
	// Stream and Version after the command, for the token.
	Stream   string
	Version  uint64
	Position event.Position // set by the store
}

// Snapshot is the folded state of a stream at a version, so that a long stream need not be read
// from its beginning.
type Snapshot struct {
	Stream  string
	Version uint64
	Schema  int    // version of State's encoding; readers ignore unknown ones
	State   []byte // in the service's own encoding
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
	return fmt.Sprintf("idempotency key %q already has an answer", e.Answer.Key)
}

// ErrClosed is returned by the methods of a closed store.
var ErrClosed = errors.New("event store closed")

// ErrFull is wrapped by the error of an append if the store's disk is full. Nothing of the batch
// was stored.
var ErrFull = errors.New("event store's disk is full")

// ErrReplaced means that the server lacks events that this process has committed or read: it was
// restored from a backup, failed over to a replica that was behind, or is another server. Reads and
// appends fail until the events are back.
var ErrReplaced = errors.New("event store lost committed events")
