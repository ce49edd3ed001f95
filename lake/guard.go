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

// guard returns an error if a client's change to a table must be refused. Clients may change their
// own tables freely. In a table that landers write, they may add rows and columns, replace files,
// and delete rows; deleted rows stay deleted.
//
// Changes that would make landers lose or repeat rows, or stop, are refused to everyone. The
// offsets in the properties say that all rows before them are in the table, so landers never write
// those rows again.
//
// before is nil for a new table. after is nil if the table would be renamed or replaced by other
// metadata.
func (l *Lake) guard(name table.Identifier, before, after table.Metadata) error {
	if before == nil {
		return l.checkNew(name, after)
	}
	if _, landed := before.Properties()[evolution.Property]; !landed {
		return nil
	}
	if after == nil {
		return errors.New("landers write this table: it cannot be renamed or replaced")
	}
	// Cheap checks first; the last one writes sample rows.
	for _, check := range []func() error{
		func() error { return checkIdentity(before, after) },
		func() error { return checkOwnProperties(before.Properties(), after.Properties()) },
		func() error { return checkPropertyValues(before.Properties(), after.Properties()) },
		func() error { return checkHistory(before, after) },
		func() error { return checkTimestamps(before, after, time.Now()) },
		func() error { return l.checkWritable(name, before, after) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ReleasedProperty must be "true" in a landed table's properties before the table may be dropped. A
// DROP is easily typed, and PURGE also removes the files, while landers would start again from the
// beginning.
const ReleasedProperty = "millrace.released"

// checkDrop returns an error if a table must not be dropped.
func checkDrop(_ table.Identifier, m table.Metadata) error {
	if _, landed := m.Properties()[evolution.Property]; landed && m.Properties()[ReleasedProperty] != "true" {
		return fmt.Errorf("landers write this table: to drop it, stop them and set its property %s to true; "+
			"when restarted, they land it from the beginning", ReleasedProperty)
	}
	return nil
}

// checkIdentity refuses a change of a table's identity, location or format version.
func checkIdentity(before, after table.Metadata) error {
	switch {
	case before.TableUUID() != after.TableUUID():
		return errors.New("assign-uuid: landers write this table and identify it by its UUID")
	case before.Location() != after.Location():
		return errors.New("set-location: landers write this table: its location cannot change")
	case before.Version() != after.Version():
		return fmt.Errorf("upgrade-format-version: landers write this table in format %d", before.Version())
	}
	return nil
}

// checkOwnProperties refuses changes to the properties that landers own, and additions of
// properties that place files elsewhere.
func checkOwnProperties(before, after iceberg.Properties) error {
	others := func(key string, _ string) bool {
		protected := strings.HasPrefix(key, datafile.OwnProperties) || slices.Contains(datafile.LocationProperties, key)
		return !protected || key == ReleasedProperty
	}
	was, is := maps.Clone(before), maps.Clone(after)
	maps.DeleteFunc(was, others)
	maps.DeleteFunc(is, others)
	for key := range is {
		if value, ok := was[key]; !ok || value != is[key] {
			return fmt.Errorf("set-properties: %s: landers write this table and own this property", key)
		}
	}
	for key := range was { // removing a placing property restores the default location, which is fine
		if _, ok := is[key]; !ok && !slices.Contains(datafile.LocationProperties, key) {
			return fmt.Errorf("remove-properties: %s: landers write this table and own this property", key)
		}
	}
	return nil
}

// checkHistory refuses a change after which the previous current snapshot is not part of the
// table's history. Landers would not land its rows again.
func checkHistory(before, after table.Metadata) error {
	was := before.CurrentSnapshot()
	if was == nil {
		return nil
	}
	// The previous head must be an ancestor of the new one, so that all its rows are still in the
	// table.
	for _, s := range maintenance.History(after) {
		if s.SnapshotID == was.SnapshotID {
			return nil
		}
	}
	return fmt.Errorf("set-snapshot-ref, remove-snapshot-ref: landers write this table and would not land again "+
		"the rows of snapshot %d, which the new history lacks. Read an earlier state by its id, "+
		"or write its rows as new ones",
		was.SnapshotID)
}

// maxClockSkew is how far a snapshot may be dated ahead of the clock. Iceberg accepts a snapshot
// that is dated at most this much before the newest one.
const maxClockSkew = time.Minute

// checkTimestamps refuses snapshots that are dated in the future, for example in microseconds
// instead of milliseconds. No commit could follow them until that time has come.
func checkTimestamps(before, after table.Metadata, now time.Time) error {
	for _, s := range after.Snapshots() {
		if before.SnapshotByID(s.SnapshotID) == nil && s.TimestampMs > now.Add(maxClockSkew).UnixMilli() {
			return fmt.Errorf("add-snapshot: snapshot %d has timestamp %d, more than %s ahead of the catalog's "+
				"clock (%d): landers could not commit after it; send milliseconds and check your clock",
				s.SnapshotID, s.TimestampMs, maxClockSkew, now.UnixMilli())
		}
	}
	return nil
}

// rehearsalTimeout limits the check whether a table can be written. The check runs in memory.
const rehearsalTimeout = 10 * time.Second

// checkWritable refuses changes after which landers could no longer write the table. If they
// already cannot, any change that may repair the table is allowed: columns that landers write must
// stay, and columns in their way may be removed.
func (l *Lake) checkWritable(name table.Identifier, before, after table.Metadata) error {
	if datafile.SameForWriting(before, after) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rehearsalTimeout)
	defer cancel()
	if t, ok := l.declared(name); ok {
		return checkDeclared(ctx, t, before, after)
	}
	// Another process lands the table and knows its declaration. Any existing column may be
	// declared there.
	keys, err := evolution.ParseKeys(before.Properties()[evolution.Property])
	if err != nil {
		return err
	}
	// If landers cannot write the table now, columns in the way may be removed.
	blocked := datafile.Landable(ctx, before) != nil
	mayGo := func(f iceberg.NestedField) bool {
		return blocked && keys[f.ID] == "" && !f.Required || !storable(f)
	}
	if err := checkFields("", before.CurrentSchema().Fields(), after.CurrentSchema().Fields(), mayGo); err != nil {
		return err
	}
	if err := datafile.Landable(ctx, after); err != nil && !blocked {
		return fmt.Errorf("landers write this table and could no longer write it: %w", err)
	}
	return nil
}

// storable reports whether landers can write a field at all.
func storable(f iceberg.NestedField) bool {
	columns, err := evolution.Columns(iceberg.NewSchema(0, f), nil)
	return err == nil && len(columnar.Storable(columns)) > 0
}

// declared returns this process's declaration of a table.
func (l *Lake) declared(name table.Identifier) (declare.Table, bool) {
	for _, t := range l.tables {
		if slices.Equal(t.Identifier(), name) {
			return t, true
		}
	}
	return declare.Table{}, false
}

// checkDeclared is Lake.checkWritable for a table whose declaration is known.
func checkDeclared(ctx context.Context, t declare.Table, before, after table.Metadata) error {
	was, err := t.Step(before)
	if err != nil {
		return nil //nolint:nilerr // it does not fit as it is: the lander reports what is wrong
	}
	is, err := t.Step(after)
	if err == nil {
		// Pending changes from before the client's change are not the client's fault.
		more := slices.DeleteFunc(slices.Clone(is.Changes),
			func(c string) bool { return slices.Contains(was.Changes, c) })
		if len(more) > 0 {
			err = errors.New(strings.Join(more, "; "))
		}
	}
	if err != nil {
		return fmt.Errorf("set-current-schema: landers write this table and would have to repair it: %w", err)
	}
	err = datafile.Writable(ctx, after, is.Columns)
	if err != nil && datafile.Writable(ctx, before, was.Columns) == nil {
		return fmt.Errorf("landers write this table and could no longer write it: %w", err)
	}
	return nil
}

// checkNew refuses a new table with a declared name that landers could not continue with.
func (l *Lake) checkNew(name table.Identifier, made table.Metadata) error {
	t, ok := l.declared(name)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rehearsalTimeout)
	defer cancel()
	_, err := t.Step(made)
	if err == nil && t.Grows { // landers would run, but turn every record that needs the column into a dead letter
		var there []columnar.Field
		if there, err = evolution.Columns(made.CurrentSchema(), nil); err == nil {
			err = t.CheckColumns(there)
		}
	}
	if err != nil {
		return fmt.Errorf("landers write a table of this name, but cannot use this one: %w", err)
	}
	if err := datafile.Landable(ctx, made); err != nil {
		return fmt.Errorf("landers write a table of this name, but cannot write this one: %w", err)
	}
	return nil
}

// checkFields refuses a schema that lacks or changes a field of the previous one, except for fields
// that mayGo selects. New fields must be optional.
func checkFields(at string, before, after []iceberg.NestedField, mayGo func(iceberg.NestedField) bool) error {
	byID := map[int]iceberg.NestedField{}
	for _, f := range after {
		byID[f.ID] = f
	}
	// Fields are matched by id, as Iceberg does: the name may change, the id may not.
	for _, was := range before {
		path := strings.TrimPrefix(at+"."+was.Name, ".")
		is, ok := byID[was.ID]
		delete(byID, was.ID)
		switch {
		case mayGo(was) && (!ok || !is.Required):
			continue
		case !ok:
			return fmt.Errorf("set-current-schema: landers write this table, including the column %s", path)
		case is.Name != was.Name:
			return fmt.Errorf("set-current-schema: landers write this table: column %s cannot be renamed", path)
		case is.Required && !was.Required:
			return fmt.Errorf("set-current-schema: landers write this table: column %s cannot become required", path)
		}
		parts, nested := was.Type.(iceberg.NestedType)
		now, still := is.Type.(iceberg.NestedType)
		if nested && still && parts.Type() == now.Type() {
			if err := checkFields(path, parts.Fields(), now.Fields(), mayGo); err != nil {
				return err
			}
		} else if !was.Type.Equals(is.Type) {
			return fmt.Errorf("set-current-schema: landers write this table, with column %s as %s", path, was.Type)
		}
	}
	for _, added := range byID {
		if added.Required {
			return fmt.Errorf("set-current-schema: landers write this table, but not column %s, so it must be optional",
				added.Name)
		}
	}
	return nil
}
