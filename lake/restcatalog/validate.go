package restcatalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// Some numbers in metadata only grow, and each writer continues from the last value. A client that
// sets one close to its limit leaves no room for later writers. So each number may only advance as
// far as the change requires.
const (
	// maxAhead is how far a snapshot may be dated ahead of this server's clock. Iceberg refuses a
	// snapshot that is older than the newest one by more than this, so a snapshot from the future
	// would block all others until then.
	maxAhead = time.Minute
	// maxNewIDs is how far the ids of columns or partition fields may advance in one change.
	maxNewIDs = 10_000
	// maxFieldID is the maximum id of a column. Iceberg reserves the ids above it.
	maxFieldID = math.MaxInt32 - 200
	// maxSequence is the maximum sequence number and row id of a registered table.
	maxSequence = 1 << 53
)

// Limits of a schema. No realistic table exceeds them, and the SQL engine or landers could not
// handle larger ones.
const (
	maxFields      = 5_000 // at all levels
	maxNesting     = 32
	maxFixed       = 1 << 16 // bytes
	maxDecimal     = 38      // digits
	maxColumnBytes = 1_000   // of a name
)

// lineage is the state that a new snapshot must follow.
type lineage struct {
	format   int
	fresh    bool // the table is new
	sequence int64
	nextRow  int64
	existing map[int64]int64 // sequence numbers of existing snapshots
	parents  map[int64]int64 // parents of existing and removed snapshots
}

// newLineage returns the lineage of a table. before is nil for a new one.
func newLineage(before table.Metadata, format int) lineage {
	l := lineage{format: format, fresh: before == nil, existing: map[int64]int64{}, parents: map[int64]int64{}}
	if before == nil {
		return l
	}
	// Both continue from the table's current values.
	l.sequence, l.nextRow = before.LastSequenceNumber(), before.NextRowID()
	for _, s := range before.Snapshots() {
		l.put(s)
	}
	return l
}

// put records an existing snapshot.
func (l *lineage) put(s table.Snapshot) {
	l.existing[s.SnapshotID] = s.SequenceNumber
	l.parents[s.SnapshotID] = parentID(s)
}

// noParent is what some engines write instead of omitting the parent.
const noParent = -1

// parentID returns a snapshot's parent, or noParent.
func parentID(s table.Snapshot) int64 {
	if s.ParentSnapshotID == nil {
		return noParent
	}
	return *s.ParentSnapshotID
}

// add checks a new snapshot and adds it. Its id must be new, must not be another snapshot's parent,
// and its own parent must exist. So the parents cannot form a cycle.
func (l *lineage) add(s table.Snapshot) error {
	if s.SnapshotID < 1 {
		return badRequest("add-snapshot: snapshot-id %d: must be above 0", s.SnapshotID)
	}
	if _, was := l.parents[s.SnapshotID]; was {
		return badRequest("add-snapshot: snapshot-id %d was used before; choose another id", s.SnapshotID)
	}
	parent := parentID(s)
	if parent == s.SnapshotID {
		return badRequest("add-snapshot: snapshot %d is its own parent", s.SnapshotID)
	}
	// Removed snapshots count, too: a later one could otherwise close a cycle.
	for id, of := range l.parents {
		if of == s.SnapshotID {
			return badRequest("add-snapshot: snapshot-id %d was the parent of snapshot %d; choose another id",
				s.SnapshotID, id)
		}
	}
	if before, ok := l.existing[parent]; parent != noParent && (!ok || l.format > 1 && s.SequenceNumber <= before) {
		if !ok {
			return badRequest("add-snapshot: the table has no snapshot %d, the parent of snapshot %d",
				parent, s.SnapshotID)
		}
		return badRequest("add-snapshot: snapshot %d has sequence number %d; "+
			"want one above %[4]d, that of its parent %[3]d",
			s.SnapshotID, s.SequenceNumber, parent, before)
	}
	if err := l.number(s); err != nil {
		return err
	}
	// Format 1 has no sequence numbers.
	if l.format > 1 {
		l.sequence = s.SequenceNumber
	}
	l.put(s)
	return nil
}

// number checks a snapshot's sequence number and, in format 3, its row ids.
func (l *lineage) number(s table.Snapshot) error {
	first := l.fresh && len(l.existing) == 0 && s.SequenceNumber == 0 // iceberg-go starts new tables at 0
	switch {
	case l.format == 1 && s.SequenceNumber != 0:
		return badRequest("add-snapshot: snapshot %d has sequence number %d; format 1 has no sequence numbers",
			s.SnapshotID, s.SequenceNumber)
	case l.format > 1 && s.SequenceNumber != l.sequence+1 && !first:
		// Another branch was changed: the client retries with the next number.
		if s.SequenceNumber >= 0 && s.SequenceNumber <= l.sequence {
			return commitFailed("add-snapshot: snapshot %d has sequence number %d, but the table is at %d",
				s.SnapshotID, s.SequenceNumber, l.sequence)
		}
		return badRequest("add-snapshot: snapshot %d has sequence number %d; want %d, the next one",
			s.SnapshotID, s.SequenceNumber, l.sequence+1)
	case l.format < 3 || s.FirstRowID == nil || s.AddedRows == nil: // iceberg-go checks these in format 3
		return nil
	case *s.FirstRowID != l.nextRow:
		if *s.FirstRowID < l.nextRow {
			return commitFailed("add-snapshot: snapshot %d has first-row-id %d, but the table is at %d",
				s.SnapshotID, *s.FirstRowID, l.nextRow)
		}
		return badRequest("add-snapshot: snapshot %d has first-row-id %d; want %d, the table's next-row-id",
			s.SnapshotID, *s.FirstRowID, l.nextRow)
	case *s.AddedRows < 0 || *s.AddedRows > maxSequence-l.nextRow:
		return badRequest("add-snapshot: snapshot %d has %d added-rows, more than the table has row ids for",
			s.SnapshotID, *s.AddedRows)
	}
	l.nextRow += *s.AddedRows
	return nil
}

// checkHistory returns an error if the new snapshots of a change do not follow the existing ones in
// sequence.
func checkHistory(before table.Metadata, updates []table.Update) error {
	format := table.DefaultFormatVersion
	if before != nil {
		format = before.Version()
	}
	l := newLineage(before, format)
	// Updates are private types of iceberg-go, so their JSON form is inspected.
	for _, u := range updates {
		var change struct {
			Snapshot *table.Snapshot `json:"snapshot"`
			Removed  []int64         `json:"snapshot-ids"`
			Format   int             `json:"format-version"`
		}
		// Only these updates affect the lineage.
		switch u.Action() {
		case table.UpdateAddSnapshot, table.UpdateRemoveSnapshots, table.UpdateUpgradeFormatVersion:
		default:
			continue
		}
		b, err := json.Marshal(u)
		if err == nil {
			err = json.Unmarshal(b, &change)
		}
		if err != nil {
			return invalidInput(u.Action(), err)
		}
		// A format upgrade applies to the snapshots that follow it in the same change.
		if change.Format > 0 {
			l.format = change.Format
		}
		// A removed snapshot cannot be the parent of a new one, but its id stays taken.
		for _, id := range change.Removed {
			delete(l.existing, id)
		}
		if change.Snapshot == nil {
			continue
		}
		if err := l.add(*change.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

// checkChange returns an error if a change leaves metadata that other readers or writers cannot
// use. It checks new schemas, ids and timestamps.
func checkChange(before, after table.Metadata, now time.Time) error {
	// The highest ids before the change. New tables start from none.
	had, columns, partitions := map[int64]bool{}, 0, iceberg.PartitionDataIDStart-1
	schemas := map[int]*iceberg.Schema{}
	if before != nil {
		for _, s := range before.Snapshots() {
			had[s.SnapshotID] = true
		}
		for _, s := range before.Schemas() {
			schemas[s.ID] = s
		}
		columns, partitions = before.LastColumnID(), max(partitions, lastPartitionID(before))
	}
	// Existing schemas are not checked again: an old table may exceed the limits.
	for _, s := range after.Schemas() {
		if was := schemas[s.ID]; was != nil && was.Equals(s) {
			continue
		}
		if err := checkSchema(s); err != nil {
			return err
		}
	}
	if last := after.LastColumnID(); last > columns+maxNewIDs || last > maxFieldID && last != columns {
		return badRequest("add-schema: the highest column id would rise to %d from %d; "+
			"a change may add up to %d ids, up to %d",
			last, columns, maxNewIDs, maxFieldID)
	}
	if last := lastPartitionID(after); last > partitions+maxNewIDs {
		return badRequest("add-spec: the highest partition field id would rise to %d from %d; "+
			"a change may add up to %d ids",
			last, partitions, maxNewIDs)
	}
	for _, s := range after.Snapshots() {
		if s.TimestampMs > now.Add(maxAhead).UnixMilli() && !had[s.SnapshotID] {
			return badRequest("add-snapshot: snapshot %d is dated %d, more than %s ahead of the catalog's clock (%d), "+
				"which would block later commits; check the unit (milliseconds) and your clock",
				s.SnapshotID, s.TimestampMs, maxAhead, now.UnixMilli())
		}
	}
	return nil
}

// lastPartitionID returns the highest id of a partition field, or 0.
func lastPartitionID(m table.Metadata) int {
	if last := m.LastPartitionSpecID(); last != nil {
		return *last
	}
	return 0
}

// checkTable checks metadata that a client has written as a whole.
func checkTable(m table.Metadata, now time.Time) error {
	if m.LastSequenceNumber() < 0 || m.LastSequenceNumber() > maxSequence ||
		m.NextRowID() < 0 || m.NextRowID() > maxSequence {
		return badRequest("metadata-location: last-sequence-number %d or next-row-id %d is out of range",
			m.LastSequenceNumber(), m.NextRowID())
	}
	// Clocks of clients and server may differ a little.
	limit := now.Add(maxAhead).UnixMilli()
	if m.LastUpdatedMillis() > limit {
		return badRequest("metadata-location: last-updated-ms %d is more than %s ahead of the catalog's clock (%d), "+
			"which would block later commits",
			m.LastUpdatedMillis(), maxAhead, now.UnixMilli())
	}
	for _, s := range m.Snapshots() {
		if s.SnapshotID < 1 || s.SequenceNumber < 0 || s.SequenceNumber > m.LastSequenceNumber() {
			return badRequest("metadata-location: snapshot %d has sequence number %d, but the table is at %d",
				s.SnapshotID, s.SequenceNumber, m.LastSequenceNumber())
		}
		if s.TimestampMs > limit {
			return badRequest("metadata-location: snapshot %d is dated %d, "+
				"more than %s ahead of the catalog's clock (%d)",
				s.SnapshotID, s.TimestampMs, maxAhead, now.UnixMilli())
		}
		// A parent may be missing: its snapshot may have expired.
		parent := m.SnapshotByID(parentID(s))
		if parent != nil && parent.SequenceNumber >= s.SequenceNumber && s.SequenceNumber > 0 {
			return badRequest("metadata-location: snapshot %d has sequence number %d; "+
				"want one above %[4]d, that of its parent %[3]d",
				s.SnapshotID, s.SequenceNumber, parent.SnapshotID, parent.SequenceNumber)
		}
	}
	if err := acyclic(m); err != nil {
		return badRequest("metadata-location: %v", err)
	}
	for _, s := range m.Schemas() {
		if err := checkSchema(s); err != nil {
			return err
		}
	}
	if m.LastColumnID() > maxFieldID || lastPartitionID(m) > maxFieldID {
		return badRequest("metadata-location: last-column-id %d or last-partition-id %d is above %d",
			m.LastColumnID(), lastPartitionID(m), maxFieldID)
	}
	return nil
}

// acyclic returns an error if a snapshot is its own ancestor.
func acyclic(m table.Metadata) error {
	parents := map[int64]int64{}
	for _, s := range m.Snapshots() {
		parents[s.SnapshotID] = parentID(s)
	}
	// Snapshots whose ancestry is known to end, so each is walked only once.
	checked := map[int64]bool{}
	for _, id := range slices.Sorted(maps.Keys(parents)) {
		walked := map[int64]bool{}
		for at, ok := id, true; ok && !checked[at]; {
			if walked[at] {
				return fmt.Errorf("snapshot %d is its own ancestor", at)
			}
			walked[at] = true
			at = parents[at]
			_, ok = parents[at]
		}
		maps.Copy(checked, walked)
	}
	return nil
}

// checkSchema returns an error if a schema exceeds the limits.
func checkSchema(s *iceberg.Schema) error {
	// The number of fields counts at all levels together.
	left := maxFields
	if err := checkFields("", s.Fields(), maxNesting, &left); err != nil {
		return badRequest("schema: %v", err)
	}
	return nil
}

// checkFields checks fields recursively. depth is the number of levels left, and left the number of
// fields.
func checkFields(at string, fields []iceberg.NestedField, depth int, left *int) error {
	if depth == 0 {
		return fmt.Errorf("%s: types are nested more than %d deep", shortened(at), maxNesting)
	}
	if *left -= len(fields); *left < 0 {
		return fmt.Errorf("more than %d columns, including nested ones", maxFields)
	}
	for _, f := range fields {
		path := strings.TrimPrefix(at+"."+f.Name, ".")
		switch {
		case f.Name == "":
			return fmt.Errorf("column %d has no name", f.ID)
		case len(f.Name) > maxColumnBytes:
			return fmt.Errorf("column %s: its name has %d bytes; the maximum is %d bytes",
				shortened(path), len(f.Name), maxColumnBytes)
		case f.ID < 0 || f.ID > maxFieldID:
			return fmt.Errorf("column %s: id %d: must be between 0 and %d", shortened(path), f.ID, maxFieldID)
		}
		if err := checkType(f.Type); err != nil {
			return fmt.Errorf("column %s: %w", shortened(path), err)
		}
		if nested, ok := f.Type.(iceberg.NestedType); ok {
			if err := checkFields(path, nested.Fields(), depth-1, left); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkType checks the parameters of a type.
func checkType(t iceberg.Type) error {
	// Other types have no parameters.
	switch t := t.(type) {
	case nil:
		return errors.New("missing type")
	case iceberg.FixedType:
		if t.Len() < 1 || t.Len() > maxFixed {
			return fmt.Errorf("fixed[%d]: the length must be between 1 and %d", t.Len(), maxFixed)
		}
	case iceberg.DecimalType:
		if t.Precision() < 1 || t.Precision() > maxDecimal || t.Scale() < 0 || t.Scale() > t.Precision() {
			return fmt.Errorf("decimal(%d, %d): the precision must be between 1 and %d, "+
				"and the scale between 0 and the precision",
				t.Precision(), t.Scale(), maxDecimal)
		}
	}
	return nil
}

// shortened truncates a name for an error message.
func shortened(name string) string {
	const limit = 100
	if len(name) <= limit {
		return name
	}
	return strings.ToValidUTF8(name[:limit], "") + "…"
}
