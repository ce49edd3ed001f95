package lake

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/duration"
	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/maintenance"
)

// AsOf is a moment in the past, either a time or offsets by topic and partition. The zero AsOf is
// now.
type AsOf struct {
	Time    time.Time
	Offsets map[string]map[int32]int64 // by partition: the first offset to exclude; other partitions are unbounded
}

// ParseAsOf parses a time ("2026-11-25T10:00:00Z"), an age ("15m", "-15m" or "2d"), or offsets
// ("millrace.orders/0=1200,millrace.orders/1=1100").
func ParseAsOf(text string, now time.Time) (AsOf, error) {
	wrong := fmt.Errorf("as of %q: want a time such as 2026-11-25T10:00:00Z, an age such as 15m or 2d, "+
		"or offsets such as millrace.orders/0=1200,millrace.orders/1=1100", text)
	// An age may have a sign, which is ignored: moments of the future have no state.
	if ago, err := duration.Parse(text); err == nil {
		return AsOf{Time: now.Add(-ago.Abs())}, nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return AsOf{Time: at}, nil
	}
	out := AsOf{Offsets: map[string]map[int32]int64{}}
	for _, part := range strings.Split(text, ",") {
		place, number, ok := strings.Cut(strings.TrimSpace(part), "=")
		// The partition follows the last slash.
		slash := strings.LastIndexByte(place, '/')
		if !ok || slash < 1 {
			return AsOf{}, wrong
		}
		partition, err1 := strconv.ParseInt(place[slash+1:], 10, 32)
		offset, err2 := strconv.ParseInt(number, 10, 64)
		if err1 != nil || err2 != nil || partition < 0 || offset < 0 {
			return AsOf{}, wrong
		}
		topic := place[:slash]
		if out.Offsets[topic] == nil {
			out.Offsets[topic] = map[int32]int64{}
		}
		if _, twice := out.Offsets[topic][int32(partition)]; twice {
			return AsOf{}, fmt.Errorf("as of %q: %s is listed twice", text, place)
		}
		out.Offsets[topic][int32(partition)] = offset
	}
	return out, nil
}

// HistoryError reports that a table's history does not reach back to a moment.
type HistoryError struct {
	Table   string
	Since   time.Time       // commit time of the oldest retained state
	Offsets map[int32]int64 // of the oldest retained state
}

func (e *HistoryError) Error() string {
	return fmt.Sprintf("the history of table %s begins at %s (offsets %s), after the requested moment; "+
		"lake.maintenance.keep sets how much history is kept",
		e.Table, e.Since.Format(time.RFC3339Nano), OffsetsText(e.Offsets))
}

// UnknownTopicError reports that an AsOf refers to a topic without tables.
type UnknownTopicError struct{ Topic string }

func (e *UnknownTopicError) Error() string {
	return fmt.Sprintf("as of offsets of topic %.100q: the lake has no table for it", e.Topic)
}

// OffsetsText formats offsets as "partition=offset,…".
func OffsetsText(offsets map[int32]int64) string {
	var parts []string
	for _, p := range slices.Sorted(maps.Keys(offsets)) {
		parts = append(parts, fmt.Sprintf("%d=%d", p, offsets[p]))
	}
	return strings.Join(parts, ",")
}

// TablesAsOf returns the states of tables at a moment. By time, that is the newest state committed
// by then. By offsets, it is the newest state without any row at or beyond them; tables of other
// topics are returned as they are now.
//
// History is thinned out: all recent states are retained, then the last of each minute, then of
// each hour. TableState.Taken is the commit time of the state found.
//
// Own tables that wanted does not select are returned as they are now; other tables are omitted.
// The error is a *HistoryError if the history does not reach back far enough.
//
// A past state is pinned by a metadata file of its own in the table's metadata folder. Nothing
// refers to this file, so maintenance eventually removes it as an orphan. The data files remain as
// long as Hold holds them, or until maintenance expires the snapshot.
func (l *Lake) TablesAsOf(ctx context.Context, at AsOf, wanted func(name string) bool) ([]TableState, error) {
	// Topics are removed as their tables are found. Those that remain are unknown.
	topics := maps.Clone(at.Offsets)
	var states []TableState
	others, err := l.others(ctx, wanted)
	if err != nil {
		return nil, err
	}
	for _, t := range slices.Concat(l.tables, others) {
		delete(topics, t.Topic)
		s, err := l.stateAsOf(ctx, t, at, wanted(t.DisplayName()))
		if errors.Is(err, ErrNoLake) { // dropped: omitted, as in Tables
			continue
		}
		// The table cannot be read, but the caller does not need it.
		if fault := faults.Of(t.DisplayName(), err); fault != nil && !wanted(t.DisplayName()) {
			continue
		}
		if err != nil {
			return nil, err
		}
		delete(topics, s.Topic)
		s.identifier = t.Identifier()
		states = append(states, s)
	}
	for topic := range topics {
		return nil, &UnknownTopicError{Topic: topic}
	}
	return states, nil
}

// Hold keeps the files of states that TablesAsOf returned until release is called, even if another
// process expires snapshots meanwhile. The error is a *HistoryError if a state has been removed
// since.
func (l *Lake) Hold(ctx context.Context, states []TableState) (release func(), err error) {
	var all []func()
	release = func() {
		for _, r := range all {
			r()
		}
	}
	for _, s := range states {
		if s.Snapshot <= 0 || s.identifier == nil {
			continue // an empty table has no files
		}
		load := func(ctx context.Context) (*table.Table, error) { return l.Load(ctx, s.identifier) }
		r, err := maintenance.Hold(ctx, load, s.Snapshot, l.log)
		if err != nil {
			release()
			if errors.Is(err, maintenance.ErrSnapshotGone) {
				return nil, l.historyError(ctx, s)
			}
			return nil, fmt.Errorf("table %s: %w", s.Name, err)
		}
		all = append(all, r)
	}
	return release, nil
}

// historyError returns how far the history of a table reaches back now.
func (l *Lake) historyError(ctx context.Context, s TableState) error {
	have, err := l.Load(ctx, s.identifier)
	if err != nil {
		return err
	}
	past, _ := history(have.Metadata(), nil)
	if len(past) == 0 {
		return &HistoryError{Table: s.Name}
	}
	oldest := past[len(past)-1]
	return &HistoryError{Table: s.Name, Since: timeunit.Time(oldest.TimestampMs), Offsets: oldest.next}
}

// stateAsOf returns the state of one table at a moment.
func (l *Lake) stateAsOf(ctx context.Context, t declare.Table, at AsOf, wanted bool) (TableState, error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return TableState{}, err
	}
	if t.Topic == "" {
		t.Topic = progress.TopicOf(have.Properties())
	}
	// With offsets, only tables of the named topics are taken back.
	bound, named := at.Offsets[t.Topic]
	if !wanted || at.Time.IsZero() && !named {
		return stateFrom(t, have)
	}
	p, err := progress.Read(t.Topic, have.Properties())
	if err != nil {
		return TableState{}, fmt.Errorf("table %s: %w", t.Name, err)
	}
	past, complete := history(have.Metadata(), p.Next)
	// Newest first: the first state that is old enough is the one.
	for _, s := range past {
		if !at.Time.IsZero() && s.TimestampMs > at.Time.UnixMilli() || !endsBy(s.next, bound) {
			continue
		}
		return pinned(ctx, t, have, &s)
	}
	// The history is complete, so the table was still empty at that moment.
	if complete {
		return pinned(ctx, t, have, nil)
	}
	oldest := past[len(past)-1]
	return TableState{}, &HistoryError{Table: t.Name, Since: timeunit.Time(oldest.TimestampMs), Offsets: oldest.next}
}

// endsBy reports whether a state that ends at next has no row at or beyond the bound.
func endsBy(next, bound map[int32]int64) bool {
	for partition, first := range bound {
		if next[partition] > first {
			return false
		}
	}
	return true
}

// moment is a snapshot with the offsets up to which it holds the topic.
type moment struct {
	table.Snapshot
	next map[int32]int64
}

// history returns the retained history of a table's main branch, newest first. complete reports
// whether it includes the table's first snapshot, before which the table was empty. now are the
// offsets of the newest snapshot.
//
// Snapshots of other engines have no offsets. They hold the same records as their parent, because
// only landers add rows of the topic. If the parent has been thinned out, the offsets of the next
// newer snapshot are an upper bound, and that is what such a snapshot gets.
func history(meta table.Metadata, now map[int32]int64) (past []moment, complete bool) {
	complete = true
	for _, s := range lineage(meta) {
		m := moment{Snapshot: s, next: now}
		if s.Summary != nil && s.Summary.Properties[progress.KeySummaryNext] != "" {
			m.next = parseOffsets(s.Summary.Properties[progress.KeySummaryNext])
		} else if len(past) > 0 {
			m.next = nil // filled in below
		}
		past = append(past, m)
		complete = s.ParentSnapshotID == nil
	}
	// From old to new: inherit the offsets of a retained parent.
	for i := len(past) - 2; i > 0; i-- {
		older, parent := past[i+1], past[i].ParentSnapshotID
		if past[i].next == nil && parent != nil && *parent == older.SnapshotID {
			past[i].next = older.next
		}
	}
	// From new to old: the parent is gone, so use the upper bound.
	for i := 1; i < len(past); i++ {
		if past[i].next == nil {
			past[i].next = past[i-1].next
		}
	}
	return past, complete
}

// lineage returns the snapshots of the main branch, newest first. If some have been thinned out, it
// continues with the newest earlier snapshot that is on no other branch.
func lineage(meta table.Metadata) (all []table.Snapshot) {
	// Snapshots of other branches are not part of the main history.
	elsewhere := map[int64]bool{}
	for name, ref := range meta.Refs() {
		if name == table.MainBranch || ref.SnapshotRefType != table.BranchRef {
			continue
		}
		for _, s := range maintenance.Ancestors(meta, ref.SnapshotID) {
			elsewhere[s.SnapshotID] = true
		}
	}
	seen := map[int64]bool{} // parents written by other clients may form a cycle
	for s := meta.CurrentSnapshot(); s != nil && !seen[s.SnapshotID]; {
		seen[s.SnapshotID] = true
		all = append(all, *s)
		if s.ParentSnapshotID == nil {
			return all
		}
		next := parentOf(meta, s)
		if next == nil {
			for _, other := range meta.Snapshots() {
				earlier := other.SequenceNumber < s.SequenceNumber && !elsewhere[other.SnapshotID]
				if earlier && (next == nil || other.SequenceNumber > next.SequenceNumber) {
					next = &other
				}
			}
		}
		s = next
	}
	return all
}

// parentOf returns a snapshot's parent, or nil if it has none or the parent was removed.
func parentOf(meta table.Metadata, s *table.Snapshot) *table.Snapshot {
	if s.ParentSnapshotID == nil {
		return nil
	}
	return meta.SnapshotByID(*s.ParentSnapshotID)
}

// parseOffsets parses a summary's offsets and skips malformed entries.
func parseOffsets(text string) map[int32]int64 {
	offsets := map[int32]int64{}
	for _, part := range strings.Split(text, ",") {
		p, n, _ := strings.Cut(part, "=")
		partition, err1 := strconv.ParseInt(p, 10, 32)
		offset, err2 := strconv.ParseInt(n, 10, 64)
		if errors.Join(err1, err2) == nil {
			offsets[int32(partition)] = offset
		}
	}
	return offsets
}

// asOfFolder is the folder, below a table's location, of the files that pin past states.
const asOfFolder = "/metadata/as-of/"

// pinned returns the state of a table at a snapshot, or the empty state before the first one if at
// is nil. It writes the metadata file that pins this state, unless it is the current one.
func pinned(ctx context.Context, t declare.Table, have *table.Table, at *moment) (TableState, error) {
	s := TableState{
		Name: t.DisplayName(), Topic: t.Topic, Location: have.Location(), MetadataLocation: have.MetadataLocation(),
		Offsets:        map[int32]int64{},
		TimePartitions: timePartitions(have.Metadata()),
	}
	id := int64(-1)
	if at != nil {
		id = at.SnapshotID
		s.Snapshot, s.Taken, s.Offsets = id, timeunit.Time(at.TimestampMs), at.next
		if at.Summary != nil {
			inFiles := at.Summary.Properties.GetInt("total-records", 0)
			s.Rows = int64(at.Summary.Properties.GetInt(progress.KeyRows, inFiles))
		}
	}
	if head := have.CurrentSnapshot(); at != nil && head.SnapshotID == id || at == nil && head == nil {
		return s, nil
	}
	fail := func(err error) (TableState, error) {
		return TableState{}, fmt.Errorf("table %s as of snapshot %d: %w", t.Name, id, err)
	}
	content, err := metadataAt(have.Metadata(), at)
	if err != nil {
		return fail(err)
	}
	files, err := datafile.Files(ctx, have)
	if err != nil {
		return fail(err)
	}
	// The name is a hash of the content, so equal requests share a file.
	sum := sha256.Sum256(content)
	s.MetadataLocation = fmt.Sprintf("%s%s00000-%x.metadata.json", have.Location(), asOfFolder, sum[:16])
	if err := files.WriteFile(s.MetadataLocation, content); err != nil {
		return fail(err)
	}
	return s, nil
}

// metadataAt returns table metadata in which the given snapshot is the current and only one. The
// result is deterministic, so the file can be named by its hash.
func metadataAt(meta table.Metadata, at *moment) ([]byte, error) {
	whole, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(whole, &fields); err != nil {
		return nil, err
	}
	set := func(key string, v any) {
		if b, e := json.Marshal(v); e != nil {
			err = e
		} else {
			fields[key] = b
		}
	}
	// Remove what changes without the snapshot, so that the file's content and name only depend on
	// the state.
	for _, key := range []string{
		"properties", "statistics", "partition-statistics", "snapshot-log", "metadata-log", "refs",
		"current-snapshot-id",
	} {
		delete(fields, key)
	}
	set("snapshots", []table.Snapshot{})
	set("last-updated-ms", 0)
	if at != nil {
		set("snapshots", []table.Snapshot{at.Snapshot})
		set("current-snapshot-id", at.SnapshotID)
		set("refs", map[string]any{table.MainBranch: map[string]any{"snapshot-id": at.SnapshotID, "type": "branch"}})
		set("last-updated-ms", at.TimestampMs)
		// The snapshot is read with the schema that was current when it was committed.
		if at.SchemaID != nil {
			set("current-schema-id", *at.SchemaID)
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}
