// Package progress reads and writes how far a table is: the first offset of each partition that it
// lacks, and what belongs to that. It is kept in the table's properties, in the commit that adds
// the rows, so that both are one truth.
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

// Table properties. They are written in the commit that adds the rows, so they and the rows are one truth; compaction
// and the expiry of snapshots keep them. The summary of each snapshot repeats the offsets as they are with it, for
// readers of history.
const (
	KeyCommit     = "millrace.commit-id"    // of the newest landing
	KeyAsOf       = "millrace.as-of"        // when the newest event in the table was recorded
	KeyTopicID    = "millrace.topic-id"     // the topic that the offsets are of
	KeyRows       = "millrace.rows"         // of a table of state: how many it has, without those that deletes take away
	KeyNextPrefix = "millrace.next-offset." // + topic + "." + partition: the first offset that is not in the table
	KeySeenPrefix = "millrace.seen."        // + topic + "." + partition: the event.Sequence up to that offset

	KeySummaryNext = maintenance.SummaryOffsets // "partition=offset,…", of all partitions that the table has anything of
)

// State is how far a table is, as its properties tell.
type State struct {
	Next    map[int32]int64 // by partition; a partition without a record of it starts at 0
	Seen    map[int32]event.Sequence
	Commit  string
	AsOf    time.Time
	TopicID string
	Rows    int64 // of a table of state
}

// Read reads how far a table of a topic is from its properties.
func Read(topic string, props iceberg.Properties) (State, error) {
	p := State{Next: map[int32]int64{}, Seen: map[int32]event.Sequence{}, Commit: props[KeyCommit], TopicID: props[KeyTopicID]}
	for k, v := range props {
		number, isNext := strings.CutPrefix(k, KeyNextPrefix+topic+".")
		isSeen := false
		if !isNext {
			number, isSeen = strings.CutPrefix(k, KeySeenPrefix+topic+".")
		}
		if !isNext && !isSeen {
			continue
		}
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

// ReadRows is how many rows landers count; 0 where they do not.
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

// Properties is what Read reads.
func (p State) Properties(topic string) iceberg.Properties {
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

// Summary is the same for a snapshot's summary, of which the metadata keeps many.
func (p State) Summary() iceberg.Properties {
	var next []string
	for _, partition := range slices.Sorted(maps.Keys(p.Next)) {
		next = append(next, fmt.Sprintf("%d=%d", partition, p.Next[partition]))
	}
	return iceberg.Properties{KeyCommit: p.Commit, KeySummaryNext: strings.Join(next, ",")}
}

// At reports whether all of the partitions stand where from says.
func (p State) At(from map[int32]int64) bool {
	for partition, next := range from {
		if p.Next[partition] != next {
			return false
		}
	}
	return true
}

// KeyTopic is the topic whose records a table holds, from the commit on that makes it a table of landers.
const KeyTopic = "millrace.topic"
