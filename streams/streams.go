// Package streams is the runtime of consumers that do work per event.
//
// A Runtime reads topics as a member of a consumer group, and passes events to a Sink: in order per
// key, in parallel across keys. Watermarks tracks how far a sink has read, for queries that wait
// for a token. A Follower keeps Watermarks current for a sink that other processes feed.
// DeadLetters writes the records that cannot be read to a topic of their own.
//
// Invariants:
//
//   - What the log has deleted is read from an Archive, if there is one, up to the first offset of the
//     log, and reading continues there: without a gap and without an overlap.
//   - The sink stores its own position. Reading starts there, and the position never runs ahead of
//     the data.
//   - An event may be delivered again, and Sink.Apply must treat it as a no-op.
//   - When a partition is revoked, none of its records is inside the sink any more.
//   - A record that cannot be read does not stop the others. It becomes a dead letter.
//   - An event that the sink cannot apply parks its stream: later events of the stream become dead
//     letters, too, and wait behind it in order. All other streams continue. When the partition is
//     assigned again, or Redrive is called, the parked events are applied in order, their dead
//     letters are deleted, and the stream continues. Parked streams survive a crash, because a
//     position moves over an event only after its dead letter is on the topic.
//
// This file is the contract of a sink. runtime.go assigns partitions and polls, partition.go tracks
// the progress of one partition, worker.go delivers records in attempts (attempt.go), parking.go is
// the index of parked events and redrive.go applies them, positions.go saves positions and measures
// lag, repair.go handles lost data, archive.go reads what the log has deleted, and watermarks.go answers
// queries.
package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/event"
)

// Record is an event and its location on the log.
type Record struct {
	Event     event.Event
	Topic     string
	Partition int32
	Offset    int64
}

// Applied is a sink's position in one partition. Every record before Next has been applied.
type Applied struct {
	Next      int64          // offset to read next
	Watermark event.Position // store position of the last event before Next
	AsOf      time.Time      // when that event was recorded; zero before the first event

	// Topic is the id of the topic. A topic that is recreated under the same name has another id
	// and other offsets. Topic is empty if the brokers have no ids, and in positions that earlier
	// versions saved.
	Topic string
	// Partitions is the number of partitions that keys were spread over at that event. It is 0 if
	// the event does not contain it. A widened topic has more.
	Partitions int32
}

// String returns a form that sinks can store: "next transaction.sequence microseconds partitions
// topic". Positions of earlier versions have the first three words only. ParseApplied reads both.
func (a Applied) String() string {
	var micros int64
	if !a.AsOf.IsZero() {
		micros = a.AsOf.UnixMicro()
	}
	s := fmt.Sprintf("%d %s %d", a.Next, a.Watermark, micros)
	if a.Topic != "" || a.Partitions != 0 {
		s += fmt.Sprintf(" %d %s", a.Partitions, cmp.Or(a.Topic, noTopic))
	}
	return s
}

// noTopic represents an empty id, which would not be a word.
const noTopic = "-"

// ParseApplied reads what String returned.
func ParseApplied(s string) (Applied, error) {
	words := strings.Fields(s)
	if len(words) != 3 && len(words) != 5 {
		return Applied{}, fmt.Errorf("sink position %q: want 3 or 5 words", s)
	}
	var a Applied
	var errs [4]error
	var micros, partitions int64
	a.Next, errs[0] = strconv.ParseInt(words[0], 10, 64)
	a.Watermark, errs[1] = event.ParsePosition(words[1])
	micros, errs[2] = strconv.ParseInt(words[2], 10, 64)
	if len(words) == 5 {
		partitions, errs[3] = strconv.ParseInt(words[3], 10, 32)
		a.Partitions, a.Topic = int32(partitions), words[4]
		if a.Topic == noTopic {
			a.Topic = ""
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return Applied{}, fmt.Errorf("sink position %q: %w", s, err)
	}
	if micros != 0 {
		a.AsOf = time.UnixMicro(micros).UTC()
	}
	return a, nil
}

// Move is a change of a sink's position in one partition.
type Move struct {
	Partition int32
	First     bool // there is no position yet, and From is meaningless
	From, To  Applied
}

// Sink is what a Runtime feeds. Its methods must be safe for concurrent use.
type Sink interface {
	// Positions returns the sink's positions in a topic, by partition. A missing partition has no
	// position yet, or its position was lost.
	Positions(ctx context.Context, topic string) (map[int32]Applied, error)

	// Apply applies events, which are in order per key. An event that was applied before must be a
	// no-op. After any error the batch is delivered again. Two errors have a special meaning:
	// *GapError and *UnreadableError.
	Apply(ctx context.Context, records []Record) error

	// SavePositions makes all moves or none. If the sink's position is not the one that a move
	// starts from, it returns ErrLost: data was lost or restored from a copy, and the runtime reads
	// again what is missing.
	SavePositions(ctx context.Context, topic string, moves []Move) error
}

// ErrLost means that a sink has lost data.
var ErrLost = errors.New("the sink lost data")

// GapError means that an event cannot be applied because the previous event of its stream was not:
// the sink lost it, or the log never had it. The runtime finds out which. It reads again what the
// sink lost, and turns what the log cannot complete into dead letters.
type GapError struct {
	Record Record
	Have   uint64 // version of the stream in the sink
}

func (e *GapError) Error() string {
	r := e.Record
	return fmt.Sprintf("gap in stream %q: the sink has version %d, "+
		"the event at offset %d of partition %d of %s has version %d",
		r.Event.Stream, e.Have, r.Offset, r.Partition, r.Topic, r.Event.Version)
}

// Is makes a gap match ErrLost.
func (e *GapError) Is(target error) bool { return target == ErrLost }

// UnreadableError means that a batch was applied, except for some events that the sink could not
// read and of which it kept nothing. They become dead letters. A sink must return the same error
// when they are delivered again.
type UnreadableError struct {
	Records []Record
	Reasons []error // parallel to Records
}

// Add adds an event that the sink could not read.
func (e *UnreadableError) Add(r Record, reason error) {
	e.Records, e.Reasons = append(e.Records, r), append(e.Reasons, reason)
}

// Behind reports whether e has an earlier event of a record's stream. If so, it adds the record: it
// waits until the earlier one is applied.
func (e *UnreadableError) Behind(r Record) bool {
	behind := slices.ContainsFunc(e.Records, func(earlier Record) bool {
		return earlier.Event.Stream == r.Event.Stream && earlier.Topic == r.Topic && earlier.Partition == r.Partition
	})
	if behind {
		e.Add(r, ErrBehind)
	}
	return behind
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("%d unreadable events, the first: %v", len(e.Records), e.Reasons[0])
}

// Unwrap returns the reasons, so that callers can test for them.
func (e *UnreadableError) Unwrap() []error { return e.Reasons }
