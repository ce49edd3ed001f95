// Package progress reads and writes how far a table has landed its topic: by partition, the first
// offset that the table lacks, and related values. They are table properties. The commit that adds
// rows also sets them, so rows and offsets cannot disagree.
package progress

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/maintenance"
)

// Table properties. Compaction and the expiry of snapshots preserve them. The summary of each
// snapshot repeats its offsets for readers of the history.
const (
	KeyCommit     = "millrace.commit-id"    // id of the newest landing commit
	KeyAsOf       = "millrace.as-of"        // recording time of the newest event in the table
	KeyTopicID    = "millrace.topic-id"     // Kafka's id of the topic
	KeyRows       = "millrace.rows"         // of a keyed table: number of rows without deleted ones
	KeyNextPrefix = "millrace.next-offset." // + topic + "." + partition: the first offset that is not in the table
	KeySeenPrefix = "millrace.seen."        // + topic + "." + partition: the event.Sequence up to that offset

	KeySummaryNext = maintenance.SummaryOffsets // "partition=offset,…" for all partitions with a recorded offset
)

// State is the progress of a table.
type State struct {
	Next    map[int32]int64 // by partition; a missing partition starts at 0
	Seen    map[int32]event.Sequence
	Commit  string
	AsOf    time.Time
	TopicID string
	Rows    int64 // of a keyed table
}

// Read reads the progress of a table from its properties, for one topic.
func Read(topic string, props iceberg.Properties) (State, error) {
	p := State{
		Next: map[int32]int64{}, Seen: map[int32]event.Sequence{},
		Commit: props[KeyCommit], TopicID: props[KeyTopicID],
	}
	for k, v := range props {
		// Topics may contain dots, so the prefix includes the whole topic name.
		number, isNext := strings.CutPrefix(k, KeyNextPrefix+topic+".")
		isSeen := false
		if !isNext {
			number, isSeen = strings.CutPrefix(k, KeySeenPrefix+topic+".")
		}
		if !isNext && !isSeen {
			continue
		}
		// Any malformed entry is an error: without its offset, rows would be lost or repeated.
		partition, err := strconv.ParseInt(number, 10, 32)
		switch {
		case err != nil:
		case isNext:
			p.Next[int32(partition)], err = strconv.ParseInt(v, 10, 64)
		default:
			p.Seen[int32(partition)], err = event.ParseSequence(v)
		}
		if err != nil {
			return State{}, fmt.Errorf("table property %s: %w", k, err)
		}
	}
	var err error
	if p.Rows, err = ReadRows(props); err != nil {
		return State{}, err
	}
	if v := props[KeyAsOf]; v != "" {
		if p.AsOf, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return State{}, fmt.Errorf("table property %s: %w", KeyAsOf, err)
		}
	}
	return p, nil
}

// ReadRows returns the row count that landers maintain, or 0 if they do not.
func ReadRows(props iceberg.Properties) (int64, error) {
	v := props[KeyRows]
	if v == "" {
		return 0, nil
	}
	rows, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("table property %s: %w", KeyRows, err)
	}
	return rows, nil
}

// Properties returns the properties from which Read restores the state. Rows is not included, since
// it depends on the snapshot that a commit is based on.
func (p State) Properties(topic string) iceberg.Properties {
	// One property per partition: a commit sets those of its batch, and the others keep their
	// values.
	props := iceberg.Properties{KeyCommit: p.Commit}
	for partition, next := range p.Next {
		props[KeyNextPrefix+topic+"."+strconv.Itoa(int(partition))] = strconv.FormatInt(next, 10)
	}
	for partition, seen := range p.Seen {
		props[KeySeenPrefix+topic+"."+strconv.Itoa(int(partition))] = seen.String()
	}
	if !p.AsOf.IsZero() {
		props[KeyAsOf] = p.AsOf.UTC().Format(time.RFC3339Nano)
	}
	if p.TopicID != "" {
		props[KeyTopicID] = p.TopicID
	}
	return props
}

// Summary returns the part that snapshot summaries repeat. It is short, because metadata has many
// summaries.
func (p State) Summary() iceberg.Properties {
	var next []string
	for _, partition := range slices.Sorted(maps.Keys(p.Next)) {
		next = append(next, fmt.Sprintf("%d=%d", partition, p.Next[partition]))
	}
	return iceberg.Properties{KeyCommit: p.Commit, KeySummaryNext: strings.Join(next, ",")}
}

// At reports whether the offsets of all partitions in from are equal to those in from.
func (p State) At(from map[int32]int64) bool {
	// A partition without an offset has landed nothing, so it is at offset 0.
	for partition, next := range from {
		if p.Next[partition] != next {
			return false
		}
	}
	return true
}

// KeyTopic is the property with the topic of a table. It is set when Millrace creates the table, or
// else with the first commit of a landing.
const KeyTopic = "millrace.topic"
