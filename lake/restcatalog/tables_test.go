package restcatalog_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

type object = map[string]any

// columns is a schema as clients send it, with their own field ids.
var columns = object{"type": "struct", "fields": []object{
	{"id": 7, "name": "n", "type": "long", "required": false},
	{"id": 8, "name": "text", "type": "string", "required": false},
}}

// shown has the checked parts of the response to a load, a create or a commit.
type shown struct {
	File     string `json:"metadata-location"`
	Metadata struct {
		UUID       string            `json:"table-uuid"`
		Location   string            `json:"location"`
		Properties map[string]string `json:"properties"`
		Schemas    []object          `json:"schemas"`
		Specs      []object          `json:"partition-specs"`
		Snapshots  []struct {
			ID int64 `json:"snapshot-id"`
		} `json:"snapshots"`
		Version int `json:"format-version"`
	} `json:"metadata"`
	Config      map[string]string `json:"config"`
	Credentials []struct {
		Prefix string            `json:"prefix"`
		Config map[string]string `json:"config"`
	} `json:"storage-credentials"`
}

// withNamespace creates the namespace that tests use.
func (p *fixture) withNamespace(t testing.TB) *fixture {
	t.Helper()
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"shop"}})
	return p
}

func (p *fixture) create(t testing.TB, name string) (s shown) {
	t.Helper()
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": name, "schema": columns}).into(t, &s)
	return s
}

func (p *fixture) load(t testing.TB, name string) (s shown) {
	t.Helper()
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop/tables/"+name, nil).into(t, &s)
	return s
}

// files returns the files of a warehouse in a folder.
func (p *fixture) files(t testing.TB) (names []string) {
	t.Helper()
	root := strings.TrimPrefix(p.Warehouse, "file://")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func rows(t testing.TB, n int64) arrow.Table {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, {Name: "text", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).Append(n)
	b.Field(1).(*array.StringBuilder).Append(fmt.Sprint("row ", n))
	rec := b.NewRecordBatch()
	defer rec.Release()
	return array.NewTableFromRecords(schema, []arrow.RecordBatch{rec})
}

// appendRow adds one row through a catalog.
func appendRow(t testing.TB, c catalog.Catalog, name string, n int64) (*table.Table, error) {
	t.Helper()
	have, err := c.LoadTable(t.Context(), table.Identifier{"shop", name})
	if err != nil {
		return nil, err
	}
	data := rows(t, n)
	defer data.Release()
	return have.AppendTable(t.Context(), data, 10, nil)
}

// A staged create leaves no trace. If its response is committed, the result is exactly the table
// that it described.
func TestStagedCreate(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	var staged shown
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "orders", "schema": columns, "stage-create": true,
		"properties": object{"owner": "anna"}}).into(t, &staged)
	if staged.File != "" || staged.Metadata.UUID == "" || !strings.HasPrefix(staged.Metadata.Location, p.Warehouse+"/shop.db/orders-") {
		t.Errorf("staged %+v", staged)
	}
	p.must(t, http.StatusNotFound, http.MethodHead, "/v1/namespaces/shop/tables/orders", nil)
	if files := p.files(t); len(files) > 0 {
		t.Errorf("files %v", files)
	}

	c := p.client(t)
	meta, err := table.ParseMetadataString(p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables",
		object{"name": "other", "schema": columns, "stage-create": true}).metadata(t))
	if err != nil {
		t.Fatal(err)
	}
	updates := []table.Update{
		table.NewAssignUUIDUpdate(meta.TableUUID()), table.NewUpgradeFormatVersionUpdate(2), table.NewAddSchemaUpdate(meta.CurrentSchema()),
		table.NewSetCurrentSchemaUpdate(-1), table.NewAddSortOrderUpdate(&table.UnsortedSortOrder), table.NewSetDefaultSortOrderUpdate(-1),
	}
	spec := meta.PartitionSpec()
	updates = append(updates, table.NewAddPartitionSpecUpdate(&spec, true), table.NewSetDefaultSpecUpdate(-1), table.NewSetLocationUpdate(meta.Location()))
	ident := table.Identifier{"shop", "other"}
	if _, _, err := c.CommitTable(t.Context(), ident, []table.Requirement{table.AssertCreate()}, updates); err != nil {
		t.Fatal(err)
	}
	is := p.load(t, "other")
	if is.Metadata.UUID != meta.TableUUID().String() || is.Metadata.Location != meta.Location() || len(is.Metadata.Schemas) != 1 || len(is.Metadata.Specs) != 1 || is.Metadata.Version != 2 {
		t.Errorf("made %+v, staged %s at %s", is.Metadata, meta.TableUUID(), meta.Location())
	}
	before := p.files(t)
	a := p.call(t, http.MethodPost, "/v1/namespaces/shop/tables/other", object{"requirements": []object{{"type": "assert-create"}}, "updates": []object{}})
	if a.status != http.StatusConflict || a.kind(t) != "CommitFailedException" {
		t.Errorf("created twice: %d %s", a.status, a.body)
	}
	if after := p.files(t); !slices.Equal(before, after) {
		t.Errorf("a commit that failed left %v of %v", after, before)
	}
}

// metadata returns the table's metadata in a response.
func (a answer) metadata(t testing.TB) string {
	t.Helper()
	var m struct {
		Metadata jsonText `json:"metadata"`
	}
	a.into(t, &m)
	return string(m.Metadata)
}

type jsonText []byte

func (j *jsonText) UnmarshalJSON(b []byte) error {
	*j = bytes.Clone(b)
	return nil
}

// A name that is reused after a rename gets a new folder, so that cleaning up one table does not
// affect the other.
func TestRenamedTableKeepsItsFolder(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	first := p.create(t, "a")
	p.must(t, http.StatusNoContent, http.MethodPost, "/v1/tables/rename", object{
		"source": object{"namespace": []string{"shop"}, "name": "a"}, "destination": object{"namespace": []string{"shop"}, "name": "b"}})
	second := p.create(t, "a")
	if first.Metadata.Location == second.Metadata.Location {
		t.Errorf("both lie at %s", first.Metadata.Location)
	}
	if b := p.load(t, "b"); b.Metadata.UUID != first.Metadata.UUID || b.File != first.File {
		t.Errorf("renamed %+v, was %+v", b, first)
	}
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/a?purgeRequested=true", nil)
	if files := p.files(t); len(files) != 1 || p.Warehouse+files[0] != first.File {
		t.Errorf("left are %v, want %s", files, first.File)
	}
}

// Dropping a table keeps its files. Purging deletes the files that it refers to, and nothing else
// in or outside of the warehouse.
func TestDropAndPurge(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	c := p.client(t)
	p.create(t, "kept")
	p.create(t, "purged")
	for n := range int64(2) {
		for _, name := range []string{"kept", "purged"} {
			if _, err := appendRow(t, c, name, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	foreign := filepath.Join(strings.TrimPrefix(p.load(t, "purged").Metadata.Location, "file://"), "data", "foreign.parquet")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/kept", nil)
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/purged?purgeRequested=true", nil)
	p.must(t, http.StatusNotFound, http.MethodGet, "/v1/namespaces/shop/tables/purged", nil)
	parquet := 0
	for _, f := range p.files(t) {
		if strings.HasPrefix(f, "/shop.db/purged-") && !strings.HasSuffix(f, "/foreign.parquet") {
			t.Errorf("%s is left", f)
		}
		if strings.HasSuffix(f, ".parquet") {
			parquet++
		}
	}
	if parquet != 3 {
		t.Errorf("%d data files are left, want 2 and the foreign one: %v", parquet, p.files(t))
	}
}

// An existing metadata file becomes a table, or replaces its own table.
func TestRegister(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	first, second := p.create(t, "a"), p.create(t, "b")
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/a", nil)
	register := func(file string, overwrite bool) answer {
		return p.call(t, http.MethodPost, "/v1/namespaces/shop/register", object{"name": "a", "metadata-location": file, "overwrite": overwrite})
	}
	if a := register(strings.Replace(first.File, "file://", "file:", 1), false); a.status != http.StatusOK { // as Hadoop writes it
		t.Fatalf("%d %s", a.status, a.body)
	}
	if is := p.load(t, "a"); is.File != first.File || is.Metadata.UUID != first.Metadata.UUID {
		t.Errorf("registered %+v, want %+v", is, first)
	}
	if a := register(second.File, false); a.status != http.StatusConflict || a.kind(t) != "AlreadyExistsException" {
		t.Errorf("registered twice: %d %s", a.status, a.body)
	}
	if a := register(second.File, true); a.status != http.StatusForbidden {
		t.Errorf("overwritten with another's: %d %s", a.status, a.body)
	}
	if a := p.transact(t, setting("a", "1")); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := register(first.File, true); a.status != http.StatusOK || p.load(t, "a").File != first.File {
		t.Errorf("overwritten with its own older state: %d %s", a.status, a.body)
	}
	if a := register(first.File+"x", true); a.status != http.StatusBadRequest {
		t.Errorf("no such file: %d %s", a.status, a.body)
	}
}

// A client may request only the snapshots of branches and tags.
func TestSnapshotsOfRefs(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	c := p.client(t)
	p.create(t, "a")
	for n := range int64(3) {
		if _, err := appendRow(t, c, "a", n); err != nil {
			t.Fatal(err)
		}
	}
	var all, refs shown
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop/tables/a?snapshots=all", nil).into(t, &all)
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop/tables/a?snapshots=refs", nil).into(t, &refs)
	if len(all.Metadata.Snapshots) != 3 || len(refs.Metadata.Snapshots) != 1 || refs.Metadata.Snapshots[0] != all.Metadata.Snapshots[2] {
		t.Errorf("all %v, of refs %v", all.Metadata.Snapshots, refs.Metadata.Snapshots)
	}
}

// A table's settings for metadata files apply to commits through this server.
func TestMetadataFiles(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	set := func(key, value string) (s shown) {
		p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables/a", object{"requirements": []object{},
			"updates": []object{{"action": "set-properties", "updates": object{key: value}}}}).into(t, &s)
		return s
	}
	p.create(t, "a")
	set(table.MetadataDeleteAfterCommitEnabledKey, "true")
	set(table.MetadataPreviousVersionsMaxKey, "2")
	for n := range 5 {
		set("n", fmt.Sprint(n))
	}
	if files := p.files(t); len(files) != 3 {
		t.Errorf("%d files, want the current and two before it: %v", len(files), files)
	}
	before := p.load(t, "a").File
	var again shown
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables/a", object{"requirements": []object{}, "updates": []object{}}).into(t, &again)
	if again.File != before {
		t.Errorf("a commit that changes nothing moved the table from %s to %s", before, again.File)
	}
	packed := set(table.MetadataCompressionKey, "gzip")
	if !strings.HasSuffix(packed.File, ".gz.metadata.json") || p.load(t, "a").Metadata.Properties["n"] != "4" {
		t.Errorf("packed %+v", packed)
	}
	b, err := os.ReadFile(strings.TrimPrefix(packed.File, "file://"))
	if err != nil || !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		t.Errorf("%s is not packed: %v", packed.File, err)
	}
	if _, err := appendRow(t, p.sql, "a", 1); err != nil { // who goes to the database directly reads on
		t.Error(err)
	}
}

// Tables can be partitioned and sorted by columns whose ids the client chose.
func TestCreateBindsSpecAndOrder(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	var s struct {
		Metadata struct {
			Specs []struct {
				Fields []struct {
					Source int    `json:"source-id"`
					Name   string `json:"name"`
				} `json:"fields"`
			} `json:"partition-specs"`
			Orders []struct {
				Fields []struct {
					Source int `json:"source-id"`
				} `json:"fields"`
			} `json:"sort-orders"`
		} `json:"metadata"`
	}
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{
		"name": "a", "schema": columns, "location": p.Warehouse + "/mine/a/",
		"partition-spec": object{"fields": []object{{"source-id": 8, "transform": "bucket[4]", "name": "part"}}},
		"write-order":    object{"order-id": 1, "fields": []object{{"source-id": 7, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}}},
	}).into(t, &s)
	if m := s.Metadata; len(m.Specs) != 1 || len(m.Specs[0].Fields) != 1 || m.Specs[0].Fields[0].Source != 2 || len(m.Orders) != 1 || m.Orders[0].Fields[0].Source != 1 {
		t.Errorf("%+v", m)
	}
	if is := p.load(t, "a"); is.Metadata.Location != p.Warehouse+"/mine/a" {
		t.Errorf("location %s", is.Metadata.Location)
	}
}
