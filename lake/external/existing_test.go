package external_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/catalog/rest"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/restcatalog"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// make creates the world's table through the REST catalog, as another engine would.
func (w *world) make(t *testing.T, columns ...iceberg.NestedField) {
	t.Helper()
	c := w.config
	c.Tables = []declare.Table{}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	h, err := l.REST(t.Context(), restcatalog.Access{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	client, err := rest.NewCatalog(context.WithoutCancel(t.Context()), "test", server.URL)
	if err != nil {
		t.Fatal(err)
	}
	name := w.name
	if err := client.CreateNamespace(t.Context(), catalog.NamespaceFromIdent(name), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateTable(t.Context(), name, iceberg.NewSchema(0, columns...)); err != nil {
		t.Fatal(err)
	}
}

// open returns the world's table as a reader sees it.
func (w *world) open(t *testing.T) *table.Table {
	t.Helper()
	c := w.config
	c.ReadOnly, c.Tables = true, []declare.Table{}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	h, err := l.REST(t.Context(), restcatalog.Access{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	client, err := rest.NewCatalog(context.WithoutCancel(t.Context()), "test", server.URL)
	if err != nil {
		t.Fatal(err)
	}
	have, err := client.LoadTable(t.Context(), w.name)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// columns returns the table's columns without those of the origin.
func (w *world) columns(t *testing.T) string {
	t.Helper()
	var all []string
	for _, f := range w.open(t).Schema().Fields() {
		if !strings.HasPrefix(f.Name, "_") {
			all = append(all, f.Name+" "+typeText(f.Type))
		}
	}
	return strings.Join(all, ", ")
}

// typeText returns a short name of a type.
func typeText(of iceberg.Type) string {
	s, ok := of.(*iceberg.StructType)
	if !ok {
		return of.String()
	}
	var fields []string
	for _, f := range s.FieldList {
		fields = append(fields, f.Name+" "+typeText(f.Type))
	}
	return "struct<" + strings.Join(fields, ", ") + ">"
}

// scan reads columns like an Iceberg reader, whatever their names in the files.
func (w *world) scan(t *testing.T, columns ...string) (rows []map[string]any) {
	t.Helper()
	data, err := w.open(t).Scan(table.WithSelectedFields(columns...)).ToArrowTable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer data.Release()
	return rowsOf(t, data)
}

// JSON fills the columns of a table of another engine, of any type.
func TestJSONIntoAnExistingTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kafkaserver.Embedded(t))
	p := iceberg.PrimitiveTypes
	w.make(t,
		iceberg.NestedField{ID: 1, Name: "id", Type: p.Int32, Required: true},
		iceberg.NestedField{ID: 2, Name: "ratio", Type: p.Float32},
		iceberg.NestedField{ID: 3, Name: "price", Type: iceberg.DecimalTypeOf(10, 2)},
		iceberg.NestedField{ID: 4, Name: "day", Type: p.Date},
		iceberg.NestedField{ID: 5, Name: "uid", Type: p.UUID},
		iceberg.NestedField{ID: 6, Name: "tod", Type: p.Time},
		iceberg.NestedField{ID: 7, Name: "raw", Type: p.Binary},
		iceberg.NestedField{ID: 8, Name: "local", Type: p.Timestamp},
		iceberg.NestedField{ID: 9, Name: "note", Type: p.String, Required: true},
		iceberg.NestedField{ID: 10, Name: "tags", Type: &iceberg.MapType{KeyID: 11, KeyType: p.String, ValueID: 12, ValueType: p.String, ValueRequired: true}},
	)
	w.put(t, 0,
		`{"tags":{"a":"b","c":""}}`, `{"tags":{"a":1}}`,
		`{"ID":7,"ratio":0.5,"price":9.99,"day":"2024-01-01","uid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","tod":"10:00:00","raw":"AQI=","local":"2024-01-01T10:00:00"}`,
		`{"id":7.5,"price":9.999,"day":"yesterday","new":1}`)
	w.land(t, external.JSON(w.name, w.topic, false))
	w.have(t, map[int32][]string{0: {
		`{"tags":[{"key":"a","value":"b"},{"key":"c","value":""}]}`, `{"tags_json":"{\"a\":1}"}`,
		`{"day":"2024-01-01","id":7,"local":"2024-01-01T10:00:00","price":"9.99","ratio":0.5,"raw":"AQI=","tod":"10:00:00","uid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`,
		`{"day_json":"\"yesterday\"","id_double":7.5,"new":1,"price_json":"9.999"}`,
	}})
	if len(w.deadLetters) != 0 {
		t.Errorf("dead letters: %v", w.deadLetters)
	}
}
