package restcatalog_test

import (
	"encoding/json"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go/table"
)

// update commits updates to a table.
func (p *fixture) update(t testing.TB, name string, updates ...object) answer {
	t.Helper()
	return p.call(t, http.MethodPost, "/v1/namespaces/shop/tables/"+name, object{"requirements": []object{}, "updates": updates})
}

func addSnapshot(id, parent, sequence int64, list string) object {
	s := object{"snapshot-id": id, "sequence-number": sequence, "timestamp-ms": time.Now().UnixMilli(),
		"manifest-list": list, "summary": object{"operation": "append"}, "schema-id": 0}
	if parent != 0 {
		s["parent-snapshot-id"] = parent
	}
	return object{"action": "add-snapshot", "snapshot": s}
}

func toMain(id int64) object {
	return object{"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": id}
}

func removeSnapshots(ids ...int64) object {
	return object{"action": "remove-snapshots", "snapshot-ids": ids}
}

// grown creates a table with two commits, and returns its snapshots, oldest first.
func (p *fixture) grown(t *testing.T, name string) []table.Snapshot {
	t.Helper()
	p.create(t, name)
	for n := range int64(2) {
		if _, err := appendRow(t, p.client(t), name, n); err != nil {
			t.Fatal(err)
		}
	}
	have, err := p.client(t).LoadTable(t.Context(), table.Identifier{"shop", name})
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Clone(have.Metadata().Snapshots())
	slices.SortFunc(all, func(a, b table.Snapshot) int { return int(a.SequenceNumber - b.SequenceNumber) })
	return all
}

// A snapshot's id never identifies two lists of files. So no commit can add another table's files
// under an existing id.
func TestSnapshotIDIsNotReused(t *testing.T) {
	t.Parallel()
	v := newVictim(t, onSQLite(t))
	own := v.grown(t, "thief")
	first, head := own[0].SnapshotID, own[1].SnapshotID
	alias := copyFile(t, v.snapshot, v.load(t, "thief").Metadata.Location+"/metadata/alias.avro", same)
	for what, updates := range map[string][]object{
		"the same id in one commit":         {removeSnapshots(first), addSnapshot(first, head, 3, alias), toMain(first)},
		"the same id on another branch":     {removeSnapshots(first), addSnapshot(first, head, 3, alias), {"action": "set-snapshot-ref", "ref-name": "b", "type": "branch", "snapshot-id": first}},
		"the same id with its own list":     {removeSnapshots(first), addSnapshot(first, head, 3, own[0].ManifestList), toMain(first)},
		"a new id, added, removed, added":   {addSnapshot(50, head, 3, own[1].ManifestList), removeSnapshots(50), addSnapshot(50, head, 4, alias), toMain(50)},
		"a new id":                          {addSnapshot(50, head, 3, alias), toMain(50)},
		"a new id of the victim's own list": {addSnapshot(50, head, 3, v.snapshot), toMain(50)},
	} {
		if a := v.update(t, "thief", updates...); a.status != http.StatusBadRequest && a.status != http.StatusForbidden {
			t.Errorf("%s: %d %s, want that it is refused", what, a.status, a.body)
		}
	}
	// An id that was removed earlier counts as new: its files are checked.
	if a := v.update(t, "thief", addSnapshot(50, head, 3, own[1].ManifestList)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := v.update(t, "thief", removeSnapshots(50)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := v.update(t, "thief", addSnapshot(50, head, 4, alias), toMain(50)); a.status != http.StatusForbidden {
		t.Errorf("%d %s, want that it is forbidden", a.status, a.body)
	}
	v.unharmed(t)
}

// A table that refers to another's manifests, from before this check, cannot carry them into new
// snapshots.
func TestExternalManifestsAreNeverKnown(t *testing.T) {
	t.Parallel()
	v := newVictim(t, onSQLite(t))
	own := v.grown(t, "thief")
	head := own[1].SnapshotID
	// Overwrite the file of the head's list, bypassing the catalog.
	b, err := os.ReadFile(folder(v.snapshot))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder(own[1].ManifestList), b, 0o600); err != nil {
		t.Fatal(err)
	}
	again := copyFile(t, v.snapshot, v.load(t, "thief").Metadata.Location+"/metadata/again.avro", same)
	if a := v.update(t, "thief", addSnapshot(50, head, 3, again), toMain(50)); a.status != http.StatusForbidden {
		t.Errorf("%d %s, want that it is forbidden", a.status, a.body)
	}
}

// Snapshots form a sequence: no request makes a cyclic history, or numbers that leave no room for
// the next writer.
func TestSnapshotLineage(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	own := p.grown(t, "t")
	first, head, list := own[0].SnapshotID, own[1].SnapshotID, own[1].ManifestList
	dated := func(u object, millis int64) object {
		u["snapshot"].(object)["timestamp-ms"] = millis
		return u
	}
	for what, c := range map[string]struct {
		updates []object
		status  int
		says    string
	}{
		"its own parent":               {[]object{addSnapshot(50, 50, 3, list), toMain(50)}, 400, "its own parent"},
		"a parent that is not there":   {[]object{addSnapshot(50, 51, 3, list), toMain(50)}, 400, "no snapshot 51"},
		"a parent that comes later":    {[]object{addSnapshot(50, 51, 3, list), addSnapshot(51, 50, 4, list)}, 400, "no snapshot 51"},
		"a cycle of two":               {[]object{addSnapshot(50, head, 3, list), addSnapshot(51, 50, 4, list), removeSnapshots(50), addSnapshot(50, 51, 5, list), toMain(50)}, 400, "another id"},
		"a cycle through the head":     {[]object{removeSnapshots(first), addSnapshot(first, head, 3, list), toMain(first)}, 400, "another id"},
		"the greatest sequence number": {[]object{addSnapshot(50, head, math.MaxInt64, list), toMain(50)}, 400, "want 3"},
		"a skipped sequence number":    {[]object{addSnapshot(50, head, 4, list), toMain(50)}, 400, "want 3"},
		"a skipped one, no parent":     {[]object{addSnapshot(50, 0, 1_000_000_000, list), toMain(50)}, 400, "want 3"},
		"a negative sequence number":   {[]object{addSnapshot(50, 0, -5, list), toMain(50)}, 400, "want 3"},
		"a number taken by another":    {[]object{addSnapshot(50, head, 2, list), toMain(50)}, 409, "sequence number"},
		"a number taken, no parent":    {[]object{addSnapshot(50, 0, 1, list), toMain(50)}, 409, "sequence number"},
		"skipped by the second":        {[]object{addSnapshot(50, head, 3, list), addSnapshot(51, 50, 5, list)}, 400, "want 4"},
		"an id of 0":                   {[]object{addSnapshot(0, head, 3, list)}, 400, "above 0"},
		"a negative id":                {[]object{addSnapshot(-7, head, 3, list)}, 400, "above 0"},
		"dated tomorrow":               {[]object{dated(addSnapshot(50, head, 3, list), time.Now().Add(24*time.Hour).UnixMilli())}, 400, "ahead of the catalog's clock"},
		"dated in microseconds":        {[]object{dated(addSnapshot(50, head, 3, list), time.Now().UnixMicro())}, 400, "ahead of the catalog's clock"},
		"dated in the farthest future": {[]object{dated(addSnapshot(50, head, 3, list), math.MaxInt64)}, 400, "ahead of the catalog's clock"},
	} {
		a := p.update(t, "t", c.updates...)
		if a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s, want %d and %q", what, a.status, a.body, c.status, c.says)
		}
	}
	// A cycle cannot be made in two commits either.
	if a := p.update(t, "t", addSnapshot(50, head, 3, list), addSnapshot(51, 50, 4, list)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := p.update(t, "t", removeSnapshots(50)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := p.update(t, "t", addSnapshot(50, 51, 5, list), toMain(50)); a.status != http.StatusBadRequest {
		t.Errorf("a cycle in two commits: %d %s", a.status, a.body)
	}
	// After all refused requests, the next writer can continue.
	if _, err := appendRow(t, p.client(t), "t", 3); err != nil {
		t.Error(err)
	}
}

// In format 3, rows have ids, and each snapshot takes the next ones.
func TestRowIDs(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "t", "schema": columns, "properties": object{"format-version": "3"}})
	empty := p.grown(t, "other")[0]
	list := copyFile(t, empty.ManifestList, p.load(t, "t").Metadata.Location+"/metadata/list.avro", same)
	numbered := func(first, added int64) object {
		u := addSnapshot(50, 0, 1, list)
		u["snapshot"].(object)["first-row-id"], u["snapshot"].(object)["added-rows"] = first, added
		return u
	}
	for _, c := range [][2]int64{{1 << 40, 1}, {math.MaxInt64 - 1, 1}, {0, math.MaxInt64}, {0, -1}, {-1, 1}} {
		if a := p.update(t, "t", numbered(c[0], c[1]), toMain(50)); a.status != http.StatusBadRequest && a.status != http.StatusConflict {
			t.Errorf("first-row-id %d, added-rows %d: %d %s", c[0], c[1], a.status, a.body)
		}
	}
}

// A schema that exceeds the limits is refused for every table, with the column's name.
func TestSchemaLimits(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "t")
	field := func(id int, name string, kind any) object {
		return object{"id": id, "name": name, "type": kind, "required": false}
	}
	nested := func(depth int) (kind any) {
		kind = "int"
		for i := range depth {
			kind = object{"type": "list", "element-id": 100 + i, "element": kind, "element-required": false}
		}
		return kind
	}
	var wide []object
	for i := range 6000 {
		wide = append(wide, field(10+i, "c"+strings.Repeat("x", i%7)+time.Duration(i).String(), "int"))
	}
	for what, c := range map[string]struct {
		fields []object
		says   string
	}{
		"fixed of no bytes":      {[]object{field(10, "empty", "fixed[0]")}, "empty"},
		"fixed of a gigabyte":    {[]object{field(10, "huge", "fixed[1000000000]")}, "huge"},
		"fixed in a list":        {[]object{field(10, "list", object{"type": "list", "element-id": 11, "element": "fixed[0]", "element-required": false})}, "list.element"},
		"a decimal of 39 digits": {[]object{field(10, "money", "decimal(39,0)")}, "39"},
		"a decimal of none":      {[]object{field(10, "money", "decimal(0,0)")}, "0"},
		"a scale above it":       {[]object{field(10, "money", "decimal(5,9)")}, "9"},
		"nested 40 deep":         {[]object{field(10, "deep", nested(40))}, "nested"},
		"6000 columns":           {wide, "5000"},
		"a name of 2000 bytes":   {[]object{field(10, strings.Repeat("n", 2000), "int")}, "1000"},
		"no name":                {[]object{field(10, "", "int")}, "name"},
		"the greatest id":        {[]object{field(math.MaxInt32, "last", "int")}, "id"},
		"an id of its own range": {[]object{field(1_000_000, "far", "int")}, "10000 ids"},
	} {
		schema := object{"type": "struct", "schema-id": 1, "fields": slices.Concat([]object{field(1, "n", "long"), field(2, "text", "string")}, c.fields)}
		a := p.update(t, "t", object{"action": "add-schema", "schema": schema})
		if a.status != http.StatusBadRequest || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %.300s, want 400 and %q", what, a.status, a.body, c.says)
		}
		if strings.Contains(what, "id") {
			continue // a new table's columns get ids of the catalog's
		}
		a = p.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "new", "schema": schema})
		if a.status != http.StatusBadRequest {
			t.Errorf("%s: a new table: %d %.300s", what, a.status, a.body)
		}
	}
}

// Metadata that a client wrote as a whole is subject to the same rules.
func TestRegisteredMetadataIsValidated(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(m object){
		"a cycle": func(m object) {
			s := m["snapshots"].([]any)
			s[0].(object)["parent-snapshot-id"] = s[1].(object)["snapshot-id"]
		},
		"its own parent":               func(m object) { s := m["snapshots"].([]any)[1].(object); s["parent-snapshot-id"] = s["snapshot-id"] },
		"the greatest sequence number": func(m object) { m["last-sequence-number"] = int64(math.MaxInt64) },
		"the greatest column id":       func(m object) { m["last-column-id"] = math.MaxInt32 },
		"the greatest partition id":    func(m object) { m["last-partition-id"] = math.MaxInt32 },
		"updated tomorrow":             func(m object) { m["last-updated-ms"] = time.Now().Add(24 * time.Hour).UnixMilli() },
	} {
		p := onSQLite(t).serve(t).withNamespace(t)
		p.grown(t, "t")
		file := p.load(t, "t").File
		p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/t", nil)
		changed := copyFile(t, file, strings.Replace(file, ".metadata.json", "-x.metadata.json", 1), func(s string) string {
			var m object
			d := json.NewDecoder(strings.NewReader(s))
			d.UseNumber()
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			change(m)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		})
		a := p.call(t, http.MethodPost, "/v1/namespaces/shop/register", object{"name": "t", "metadata-location": changed})
		if a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want that it is refused", what, a.status, a.body)
		}
		p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/register", object{"name": "t", "metadata-location": file})
	}
}

// A location that file systems cannot store is refused with the field's name, wherever a client can
// send one.
func TestLongLocationsAreRefused(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "t")
	for what, below := range map[string]string{"a part of 300 bytes": strings.Repeat("x", 300), "2000 bytes": strings.Repeat("/folder", 300)[1:]} {
		at := p.Warehouse + "/shop.db/" + below
		for where, a := range map[string]answer{
			"location":              p.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "new", "schema": columns, "location": at}),
			"location of a change":  p.update(t, "t", object{"action": "set-location", "location": at}),
			"location of namespace": p.call(t, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"n"}, "properties": object{"location": at}}),
		} {
			if a.status != http.StatusBadRequest || !strings.Contains(a.body, "location") || !strings.Contains(a.body, "bytes") {
				t.Errorf("%s, %s: %d %.300s", what, where, a.status, a.body)
			}
		}
	}
}
