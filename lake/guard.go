package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/maintenance"
)

// guard is what speaks against a client's change of a table. Clients may do what they like with tables of their own. To
// one that landers keep they may add rows, files in place of others, and columns, and they may delete rows, which then
// stay deleted. What would make the landers lose or repeat rows, or stop, is refused to everyone, as it is never what
// was meant: the positions in the properties say that the rows before them are in the table, even if somebody deletes
// these. A nil before says that the table is new, a nil after that it would be renamed, or another's metadata in its
// place.
func (l *Lake) guard(name table.Identifier, before, after table.Metadata) error {
	if before == nil {
		return l.begins(name, after)
	}
	if _, landed := before.Properties()[evolution.Property]; !landed {
		return nil
	}
	if after == nil {
		return errors.New("landers keep this table under its name: it is neither renamed nor replaced")
	}
	for _, check := range []func() error{
		func() error { return samePlace(before, after) },
		func() error { return sameProperties(before.Properties(), after.Properties()) },
		func() error { return soundProperties(before.Properties(), after.Properties()) },
		func() error { return follows(before, after) },
		func() error { return dated(before, after, time.Now()) },
		func() error { return l.fits(name, before, after) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ReleasedProperty is what a table's properties must say before it may be dropped: a client's DROP is soon said, and its
// PURGE takes the files, beside landers that then land everything anew.
const ReleasedProperty = "millrace.released"

// mayDrop is what speaks against dropping a table.
func mayDrop(_ table.Identifier, m table.Metadata) error {
	if _, landed := m.Properties()[evolution.Property]; landed && m.Properties()[ReleasedProperty] != "true" {
		return fmt.Errorf("landers keep this table: to drop it, stop them and set its property %s to true; started again, they land it anew", ReleasedProperty)
	}
	return nil
}

func samePlace(before, after table.Metadata) error {
	switch {
	case before.TableUUID() != after.TableUUID():
		return errors.New("assign-uuid: landers keep this table, and know it by its id")
	case before.Location() != after.Location():
		return errors.New("set-location: landers keep this table where it is")
	case before.Version() != after.Version():
		return fmt.Errorf("upgrade-format-version: landers write this table in format %d", before.Version())
	}
	return nil
}

func sameProperties(before, after iceberg.Properties) error {
	others := func(key string, _ string) bool {
		return !strings.HasPrefix(key, datafile.OwnProperties) && !slices.Contains(datafile.Placing, key) || key == ReleasedProperty
	}
	was, is := maps.Clone(before), maps.Clone(after)
	maps.DeleteFunc(was, others)
	maps.DeleteFunc(is, others)
	for key := range is {
		if value, ok := was[key]; !ok || value != is[key] {
			return fmt.Errorf("set-properties: %s: landers keep this table, and this property of it", key)
		}
	}
	for key := range was { // without a placing property, files go where landers want them
		if _, ok := is[key]; !ok && !slices.Contains(datafile.Placing, key) {
			return fmt.Errorf("remove-properties: %s: landers keep this table, and this property of it", key)
		}
	}
	return nil
}

// follows reports, as nil, that the table still has what was in it.
func follows(before, after table.Metadata) error {
	was := before.CurrentSnapshot()
	if was == nil {
		return nil
	}
	for _, s := range maintenance.History(after) {
		if s.SnapshotID == was.SnapshotID {
			return nil
		}
	}
	return fmt.Errorf("set-snapshot-ref, remove-snapshot-ref: landers keep this table, and would not land again what is in snapshot %d and not in this one. "+
		"Read an earlier state by its id, or write the rows of it as new ones", was.SnapshotID)
}

// Iceberg takes a snapshot that is dated before the newest one by so much at most.
const mostAhead = time.Minute

// dated refuses snapshots that are dated in the future, such as microseconds in place of milliseconds: no commit could
// follow them until that time has come.
func dated(before, after table.Metadata, now time.Time) error {
	for _, s := range after.Snapshots() {
		if before.SnapshotByID(s.SnapshotID) == nil && s.TimestampMs > now.Add(mostAhead).UnixMilli() {
			return fmt.Errorf("add-snapshot: snapshot %d is dated %d, more than %s ahead of the catalog's clock (%d): landers could commit nothing after it; "+
				"is that in milliseconds, and is your clock right?", s.SnapshotID, s.TimestampMs, mostAhead, now.UnixMilli())
		}
	}
	return nil
}

// How long it may take to find out whether a table can be written; it is done in memory.
const rehearsalTimeout = 10 * time.Second

// fits reports whether landers can write the table as well as before. Where they could not, whatever leads out of that
// may be done: the columns that they write stay, and those that stand in their way may go.
func (l *Lake) fits(name table.Identifier, before, after table.Metadata) error {
	if datafile.AsWritten(before, after) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rehearsalTimeout)
	defer cancel()
	if t, ok := l.declared(name); ok {
		return fits(ctx, t, before, after)
	}
	// Another process lands it, and knows its columns: all that are there may be the landers'.
	keys, err := evolution.ParseKeys(before.Properties()[evolution.Property])
	if err != nil {
		return err
	}
	blocked := datafile.Landable(ctx, before) != nil
	mayGo := func(f iceberg.NestedField) bool {
		return blocked && keys[f.ID] == "" && !f.Required || !storable(f)
	}
	if err := keeps("", before.CurrentSchema().Fields(), after.CurrentSchema().Fields(), mayGo); err != nil {
		return err
	}
	if err := datafile.Landable(ctx, after); err != nil && !blocked {
		return fmt.Errorf("landers keep this table, and could not write it any more: %w", err)
	}
	return nil
}

func storable(f iceberg.NestedField) bool {
	columns, err := evolution.Columns(iceberg.NewSchema(0, f), nil)
	return err == nil && len(columnar.Storable(columns)) > 0
}

func (l *Lake) declared(name table.Identifier) (declare.Table, bool) {
	for _, t := range l.tables {
		if slices.Equal(t.Identifier(), name) {
			return t, true
		}
	}
	return declare.Table{}, false
}

// fits is the same of a table whose columns are known.
func fits(ctx context.Context, t declare.Table, before, after table.Metadata) error {
	was, err := t.Step(before)
	if err != nil {
		return nil //nolint:nilerr // it does not fit as it is: the lander reports what is wrong
	}
	is, err := t.Step(after)
	if err == nil {
		more := slices.DeleteFunc(slices.Clone(is.Changes), func(c string) bool { return slices.Contains(was.Changes, c) })
		if len(more) > 0 {
			err = errors.New(strings.Join(more, "; "))
		}
	}
	if err != nil {
		return fmt.Errorf("set-current-schema: landers keep this table, and would have to make up for it: %w", err)
	}
	if err := datafile.Writable(ctx, after, is.Columns); err != nil && datafile.Writable(ctx, before, was.Columns) == nil {
		return fmt.Errorf("landers keep this table, and could not write it any more: %w", err)
	}
	return nil
}

// begins reports whether landers can continue with a table that a client makes under the name of one of theirs.
func (l *Lake) begins(name table.Identifier, made table.Metadata) error {
	t, ok := l.declared(name)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rehearsalTimeout)
	defer cancel()
	_, err := t.Step(made)
	if err == nil && t.Grows { // landers would go on, and park each record that needs the column
		var there []columnar.Field
		if there, err = evolution.Columns(made.CurrentSchema(), nil); err == nil {
			err = t.CheckColumns(there)
		}
	}
	if err != nil {
		return fmt.Errorf("landers write a table of this name, and could not use this one: %w", err)
	}
	if err := datafile.Landable(ctx, made); err != nil {
		return fmt.Errorf("landers write a table of this name, and could not write this one: %w", err)
	}
	return nil
}

// keeps reports whether all fields are still there, as they were, but for those that may go, and those beside them may
// be null.
func keeps(at string, before, after []iceberg.NestedField, mayGo func(iceberg.NestedField) bool) error {
	byID := map[int]iceberg.NestedField{}
	for _, f := range after {
		byID[f.ID] = f
	}
	for _, was := range before {
		path := strings.TrimPrefix(at+"."+was.Name, ".")
		is, ok := byID[was.ID]
		delete(byID, was.ID)
		switch {
		case mayGo(was) && (!ok || !is.Required):
			continue
		case !ok:
			return fmt.Errorf("set-current-schema: landers keep this table, and write the column %s", path)
		case is.Name != was.Name:
			return fmt.Errorf("set-current-schema: landers keep this table, and call the column %s so", path)
		case is.Required && !was.Required:
			return fmt.Errorf("set-current-schema: landers keep this table, and may leave the column %s empty", path)
		}
		parts, nested := was.Type.(iceberg.NestedType)
		now, still := is.Type.(iceberg.NestedType)
		if nested && still && parts.Type() == now.Type() {
			if err := keeps(path, parts.Fields(), now.Fields(), mayGo); err != nil {
				return err
			}
		} else if !was.Type.Equals(is.Type) {
			return fmt.Errorf("set-current-schema: landers keep this table, and write the column %s as %s", path, was.Type)
		}
	}
	for _, added := range byID {
		if added.Required {
			return fmt.Errorf("set-current-schema: landers keep this table, and know no column %s, so it must be optional", added.Name)
		}
	}
	return nil
}
