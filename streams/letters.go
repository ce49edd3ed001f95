package streams

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
)

// redriveKey is the beginning of the key of a request to apply the parked events of a sink, whose
// name follows. DeadLetterTopic has these requests, too, because every sink may write there.
const redriveKey = "redrive|"

// StoredDeadLetter is a dead letter as it is on DeadLetterTopic.
type StoredDeadLetter struct {
	DeadLetter
	Deleted bool // the dead letter was deleted; only its identity is set
	// Parked reports whether the sink applies the record again later. Attempts is how often it has
	// tried, and 0 if the event waits behind an earlier one of its stream.
	Parked   bool
	Attempts int
	Stack    string // where the sink panicked
	Size     int64  // bytes of the whole value

	topicID string // of Topic when the event was parked
}

// ID returns the key of the dead letter.
func (l *StoredDeadLetter) ID() string {
	return string(letterKey(l.Sink, Record{Topic: l.Topic, Partition: l.Partition, Offset: l.Offset}))
}

// Shortened reports whether the value is not complete, because it was too large for the topic.
func (l *StoredDeadLetter) Shortened() bool { return l.Size != int64(len(l.Value)) }

// from returns the partition of the record.
func (l *StoredDeadLetter) from() kafka.TopicPartition {
	return kafka.TopicPartition{Topic: l.Topic, Partition: l.Partition}
}

// ReadDeadLetters calls fn with the dead letters on their topic, in the order in which they were
// written. The same one may come several times, and the last time counts.
func ReadDeadLetters(ctx context.Context, cfg kafka.Config, fn func(StoredDeadLetter)) error {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, DeadLetterTopic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return nil // there never was one
	}
	if err != nil {
		return fmt.Errorf("find the dead letters: %w", err)
	}
	return readDeadLetters(ctx, cfg, nil, ends, fn)
}

// AwaitReleased returns nil when dead letters of a sink are deleted: parked events were applied, or
// skipped, since the call. It is for what follows from a sink's data.
func AwaitReleased(ctx context.Context, cfg kafka.Config, sink string) error {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return fmt.Errorf("await released events: %w", err)
	}
	defer admin.Close()
	var seen map[int32]int64
	for {
		ends, err := admin.EndOffsets(ctx, DeadLetterTopic)
		if errors.Is(err, kafka.ErrUnknownTopic) {
			ends, err = map[int32]int64{}, nil
		}
		released := false
		if err == nil && seen != nil {
			err = readDeadLetters(ctx, cfg, seen, ends, func(l StoredDeadLetter) {
				released = released || l.Sink == sink && l.Deleted
			})
		}
		if err == nil { // after an error, the same range is read again
			seen = ends
		}
		if released {
			return nil
		}
		if !backoff.Sleep(ctx, redriveEvery) {
			return context.Cause(ctx)
		}
	}
}

// readDeadLetters reads a range of DeadLetterTopic. It skips other records.
func readDeadLetters(ctx context.Context, cfg kafka.Config, from, to map[int32]int64, fn func(StoredDeadLetter)) error {
	err := kafka.ReadAll(ctx, cfg, DeadLetterTopic, from, to, func(m kafka.Message) error {
		if l, ok := parseDeadLetter(m); ok {
			fn(l)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	return nil
}

// parseDeadLetter reads a record of DeadLetterTopic. ok reports whether it is a dead letter.
func parseDeadLetter(m kafka.Message) (l StoredDeadLetter, ok bool) {
	if l.DeadLetter, ok = parseLetterKey(string(m.Key)); !ok {
		return StoredDeadLetter{}, false
	}
	if m.Value == nil {
		l.Deleted = true
		return l, true
	}
	l.Value, l.Size = m.Value, int64(len(m.Value))
	for _, h := range m.Headers {
		var err error
		switch h.Key {
		case HeaderDeadLetterKey:
			l.Key = h.Value
		case HeaderDeadLetterReason:
			l.Reason = errors.New(string(h.Value))
		case HeaderDeadLetterStack:
			l.Stack = string(h.Value)
		case HeaderDeadLetterTopicID:
			l.topicID = string(h.Value)
		case HeaderDeadLetterAttempts:
			l.Parked = true
			l.Attempts, err = strconv.Atoi(string(h.Value))
		case HeaderDeadLetterSize:
			l.Size, err = strconv.ParseInt(string(h.Value), 10, 64)
		case HeaderDeadLetterSHA256:
		default:
			l.Headers = append(l.Headers, h)
		}
		if err != nil {
			return StoredDeadLetter{}, false
		}
	}
	// A stream has a name, and numbers are not negative.
	return l, l.Attempts >= 0 && l.Size >= int64(len(l.Value)) && (!l.Parked || len(l.Key) > 0)
}

// parseLetterKey reads what letterKey returned.
func parseLetterKey(key string) (l DeadLetter, ok bool) {
	words := strings.Split(key, "|")
	if len(words) != 4 || words[0] == "" || words[1] == "" {
		return DeadLetter{}, false
	}
	partition, err1 := strconv.ParseInt(words[2], 10, 32)
	offset, err2 := strconv.ParseInt(words[3], 10, 64)
	l = DeadLetter{Sink: words[0], Topic: words[1], Partition: int32(partition), Offset: offset}
	return l, err1 == nil && err2 == nil && partition >= 0 && offset >= 0
}

// ErrNoDeadLetter means that an id is not that of a dead letter.
var ErrNoDeadLetter = errors.New("not the id of a dead letter: want SINK|TOPIC|PARTITION|OFFSET")

// Redrive asks the processes that feed a sink to apply its parked events again. They do so within
// about a second.
func (p *DeadLetters) Redrive(ctx context.Context, sink string) error {
	return p.writer.put(ctx, []kafka.Record{{
		Topic: DeadLetterTopic, Partition: kafka.AnyPartition, Key: []byte(redriveKey + sink),
		Value: []byte(time.Now().UTC().Format(time.RFC3339Nano)), // so that compaction keeps it for a while
	}})
}

// Delete deletes a dead letter. A parked event is skipped then, at the next redrive.
func (p *DeadLetters) Delete(ctx context.Context, id string) error {
	l, ok := parseLetterKey(id)
	if !ok {
		return fmt.Errorf("%q: %w", id, ErrNoDeadLetter)
	}
	rec := Record{Event: event.Event{}, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset}
	return p.writer.put(ctx, []kafka.Record{deletion(l.Sink, rec)})
}
