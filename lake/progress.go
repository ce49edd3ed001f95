package lake

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/maintenance"
)

// Table properties. They are written in the commit that adds the rows, so they and the rows are one truth; compaction
// and the expiry of snapshots keep them. The summary of each snapshot repeats the offsets as they are with it, for
// readers of history.
const (
	propCommit     = "millrace.commit-id"    // of the newest landing
	propAsOf       = "millrace.as-of"        // when the newest event in the table was recorded
	propTopicID    = "millrace.topic-id"     // the topic that the offsets are of
	propRows       = "millrace.rows"         // of a table of state: how many it has, without those that deletes take away
	propNextPrefix = "millrace.next-offset." // + topic + "." + partition: the first offset that is not in the table
	propSeenPrefix = "millrace.seen."        // + topic + "." + partition: the event.Sequence up to that offset

	summaryNext = maintenance.SummaryOffsets // "partition=offset,…", of all partitions that the table has anything of
)

// progress is how far a table is, as its properties tell.
type progress struct {
	next    map[int32]int64 // by partition; a partition without a record of it starts at 0
	seen    map[int32]event.Sequence
	commit  string
	asOf    time.Time
	topicID string
	rows    int64 // of a table of state
}

func readProgress(topic string, props iceberg.Properties) (progress, error) {
	p := progress{next: map[int32]int64{}, seen: map[int32]event.Sequence{}, commit: props[propCommit], topicID: props[propTopicID]}
	for k, v := range props {
		number, isNext := strings.CutPrefix(k, propNextPrefix+topic+".")
		isSeen := false
		if !isNext {
			number, isSeen = strings.CutPrefix(k, propSeenPrefix+topic+".")
		}
		if !isNext && !isSeen {
			continue
		}
		partition, err := strconv.ParseInt(number, 10, 32)
		switch {
		case err != nil:
		case isNext:
			p.next[int32(partition)], err = strconv.ParseInt(v, 10, 64)
		default:
			p.seen[int32(partition)], err = event.ParseSequence(v)
		}
		if err != nil {
			return progress{}, fmt.Errorf("table property %s: %w", k, err)
		}
	}
	var err error
	if p.rows, err = readRows(props); err != nil {
		return progress{}, err
	}
	if v := props[propAsOf]; v != "" {
		if p.asOf, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return progress{}, fmt.Errorf("table property %s: %w", propAsOf, err)
		}
	}
	return p, nil
}

// readRows is how many rows landers count; 0 where they do not.
func readRows(props iceberg.Properties) (int64, error) {
	v := props[propRows]
	if v == "" {
		return 0, nil
	}
	rows, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("table property %s: %w", propRows, err)
	}
	return rows, nil
}

// properties is what readProgress reads.
func (p progress) properties(topic string) iceberg.Properties {
	props := iceberg.Properties{propCommit: p.commit}
	for partition, next := range p.next {
		props[propNextPrefix+topic+"."+strconv.Itoa(int(partition))] = strconv.FormatInt(next, 10)
	}
	for partition, seen := range p.seen {
		props[propSeenPrefix+topic+"."+strconv.Itoa(int(partition))] = seen.String()
	}
	if !p.asOf.IsZero() {
		props[propAsOf] = p.asOf.UTC().Format(time.RFC3339Nano)
	}
	if p.topicID != "" {
		props[propTopicID] = p.topicID
	}
	return props
}

// summary is the same for a snapshot's summary, of which the metadata keeps many.
func (p progress) summary() iceberg.Properties {
	var next []string
	for _, partition := range slices.Sorted(maps.Keys(p.next)) {
		next = append(next, fmt.Sprintf("%d=%d", partition, p.next[partition]))
	}
	return iceberg.Properties{propCommit: p.commit, summaryNext: strings.Join(next, ",")}
}

// at tells whether all of the partitions stand where from says.
func (p progress) at(from map[int32]int64) bool {
	for partition, next := range from {
		if p.next[partition] != next {
			return false
		}
	}
	return true
}

// landing is the answer to "did my commit land?".
type landing int

const (
	notLanded   landing = iota // and it never will: another commit took its place
	landed                     // it is in the table's history
	landUnknown                // it may still land, or the history does not reach back far enough
)

// findCommit looks for a commit in the table's history: the commit was to follow directly on the snapshot base (0: on
// none), which it asserted. So if that place is taken by another, it can never land.
func findCommit(meta table.Metadata, id string, base int64) landing {
	for _, s := range maintenance.History(meta) {
		if s.Summary != nil && s.Summary.Properties[propCommit] == id {
			return landed
		}
		var parent int64
		if s.ParentSnapshotID != nil {
			parent = *s.ParentSnapshotID
		}
		if parent == base {
			return notLanded
		}
	}
	return landUnknown
}
