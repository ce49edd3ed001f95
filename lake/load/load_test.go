package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
)

// With these variables, this binary loads a file instead of running tests, and kills itself before or
// after the commit.
const (
	childFolder = "MILLRACE_TEST_FOLDER"
	childKill   = "MILLRACE_TEST_KILL"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		if err := childLoads(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func childLoads(dir string) error {
	ctx := context.Background()
	l, err := lake.Open(ctx, where(dir))
	if err != nil {
		return err
	}
	l.SetCatalog(&killing{l.Catalog(), os.Getenv(childKill)})
	return File(ctx, l, config(filepath.Join(dir, "second.parquet")))
}

// killing is a catalog whose process is killed before or after a commit.
type killing struct {
	catalog.Catalog
	when string
}

// LoadTable returns a table that commits to this catalog.
func (k *killing) LoadTable(ctx context.Context, name table.Identifier) (*table.Table, error) {
	t, err := k.Catalog.LoadTable(ctx, name)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, k), nil
}

func (k *killing) CommitTable(ctx context.Context, name table.Identifier, reqs []table.Requirement,
	updates []table.Update) (meta table.Metadata, at string, err error) {
	if k.when == "after" {
		meta, at, err = k.Catalog.CommitTable(ctx, name, reqs, updates)
	}
	return meta, at, errors.Join(err, syscall.Kill(os.Getpid(), syscall.SIGKILL))
}

func where(dir string) lake.Config {
	return lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"),
		Tables: []declare.Table{}, Logger: slog.New(slog.DiscardHandler)}
}

func open(t *testing.T, dir string) *lake.Lake {
	t.Helper()
	l, err := lake.Open(t.Context(), where(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func config(file string) Config {
	return Config{Table: lake.Name{"sets", "churn"}, File: file, Kind: "set", Properties: map[string]string{"note": filepath.Base(file)}}
}

// write writes a file with columns of these JSON rows.
func write(t *testing.T, path string, fields []arrow.Field, rows string) string {
	t.Helper()
	schema := arrow.NewSchema(fields, nil)
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pqarrow.NewFileWriter(schema, f, nil, pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

var plainFields = []arrow.Field{
	{Name: "id", Type: arrow.PrimitiveTypes.Int64},
	{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
}

// rows returns a table's rows as JSON, in the order of its text.
func rows(t *testing.T, l *lake.Lake) []string {
	t.Helper()
	have, err := l.Load(t.Context(), lake.Name{"sets", "churn"})
	if errors.Is(err, lake.ErrNoLake) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := have.Scan().ToArrowTable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer all.Release()
	var lines []string
	for r := array.NewTableReader(all, 0); r.Next(); {
		text, err := r.RecordBatch().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var objects []json.RawMessage
		if err := json.Unmarshal(text, &objects); err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			lines = append(lines, string(o))
		}
	}
	slices.Sort(lines)
	return lines
}

// TestFile: the table has the rows, its snapshot the properties; another file replaces them.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	first := write(t, filepath.Join(dir, "first.parquet"), plainFields, `[{"id":1,"text":"a"},{"id":2,"text":null}]`)
	second := write(t, filepath.Join(dir, "second.parquet"), plainFields, `[{"id":3,"text":"c"}]`)
	empty := write(t, filepath.Join(dir, "empty.parquet"), plainFields, `[]`)
	for i, step := range []struct {
		file string
		want []string
	}{
		{first, []string{`{"id":1,"text":"a"}`, `{"id":2,"text":null}`}},
		{second, []string{`{"id":3,"text":"c"}`}},
		{second, []string{`{"id":3,"text":"c"}`}},
		{empty, nil},
		{first, []string{`{"id":1,"text":"a"}`, `{"id":2,"text":null}`}},
	} {
		if err := File(t.Context(), l, config(step.file)); err != nil {
			t.Fatal(err)
		}
		if got := rows(t, l); !slices.Equal(got, step.want) {
			t.Errorf("step %d: rows %v, want %v", i, got, step.want)
		}
		have, err := l.Load(t.Context(), lake.Name{"sets", "churn"})
		if err != nil {
			t.Fatal(err)
		}
		note := filepath.Base(step.file)
		if s := have.CurrentSnapshot(); have.Properties()["note"] != note || s.Summary.Properties["note"] != note {
			t.Errorf("step %d: properties %v, snapshot %v", i, have.Properties(), s)
		}
		if n := len(have.Metadata().Snapshots()); n != i+1 {
			t.Errorf("step %d: %d snapshots", i, n)
		}
	}
}

// TestTypes: values keep their meaning where Iceberg has other types.
func TestTypes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	list := arrow.ListOf(arrow.BinaryTypes.String)
	path := write(t, filepath.Join(dir, "types.parquet"), []arrow.Field{
		{Name: "small", Type: arrow.PrimitiveTypes.Uint8}, {Name: "unsigned", Type: arrow.PrimitiveTypes.Uint32},
		{Name: "millis", Type: arrow.FixedWidthTypes.Timestamp_ms}, {Name: "nanos", Type: arrow.FixedWidthTypes.Timestamp_ns},
		{Name: "local", Type: &arrow.TimestampType{Unit: arrow.Microsecond}}, {Name: "list", Type: list, Nullable: true},
		{Name: "map", Type: arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Float64), Nullable: true},
		{Name: "struct", Type: arrow.StructOf(arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int32, Nullable: true}), Nullable: true},
		{Name: "amount", Type: &arrow.Decimal128Type{Precision: 38, Scale: 9}, Nullable: true},
	}, `[{"small":255,"unsigned":4294967295,"millis":"2026-01-02T03:04:05.678Z","nanos":"2026-01-02T03:04:05.123456Z",
		"local":"2026-01-02T03:04:05.123456","list":["x","y"],"map":[{"key":"k","value":1.5}],"struct":{"a":7},"amount":"12.5"}]`)
	if err := File(t.Context(), l, config(path)); err != nil {
		t.Fatal(err)
	}
	got := rows(t, l)
	if len(got) != 1 {
		t.Fatalf("rows %v", got)
	}
	for _, want := range []string{`"small":255`, `"unsigned":4294967295`, "03:04:05.678", "03:04:05.123456", `["x","y"]`, `"a":7`, "12.5"} {
		if !strings.Contains(got[0], want) {
			t.Errorf("%s lacks %s", got[0], want)
		}
	}
}

// TestRefused: other tables are not replaced, and values that the table cannot have are errors that
// name the column. Nothing changes.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := File(t.Context(), l, config(write(t, filepath.Join(dir, "first.parquet"), plainFields, `[{"id":1}]`))); err != nil {
		t.Fatal(err)
	}
	other := config(filepath.Join(dir, "first.parquet"))
	other.Kind = "report"
	renamed := config(write(t, filepath.Join(dir, "renamed.parquet"),
		[]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}, {Name: "label", Type: arrow.BinaryTypes.String}}, `[{"id":1,"label":"x"}]`))
	wide := config(write(t, filepath.Join(dir, "wide.parquet"),
		[]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Uint64}}, `[{"n":18446744073709551615}]`))
	wide.Table = lake.Name{"sets", "wide"}
	zone := config(write(t, filepath.Join(dir, "nested.parquet"),
		[]arrow.Field{{Name: "times", Type: arrow.ListOf(arrow.FixedWidthTypes.Timestamp_ms)}}, `[{"times":["2026-01-02T03:04:05Z"]}]`))
	zone.Table = lake.Name{"sets", "nested"}
	for want, c := range map[string]Config{
		"sets.churn is not a report": other, "column 2 is text string, and in the file label string": renamed,
		"column n": wide, "column times": zone,
	} {
		if err := File(t.Context(), l, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %q", err, want)
		}
	}
	all, err := l.All(t.Context())
	if err != nil || len(all) != 1 || !slices.Equal(rows(t, l), []string{`{"id":1,"text":null}`}) {
		t.Errorf("tables %v with %v: %v", all, rows(t, l), err)
	}
}

// TestKilled: a process that is killed leaves the table as it was, or as it is to be, whether it
// existed or not; and the next run works.
func TestKilled(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for _, exists := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s the commit, the table exists %v", when, exists), func(t *testing.T) {
				dir := t.TempDir()
				l := open(t, dir)
				var want []string
				if exists {
					first := write(t, filepath.Join(dir, "first.parquet"), plainFields, `[{"id":1,"text":"a"}]`)
					if err := File(t.Context(), l, config(first)); err != nil {
						t.Fatal(err)
					}
					want = []string{`{"id":1,"text":"a"}`}
				}
				second := write(t, filepath.Join(dir, "second.parquet"), plainFields, `[{"id":2,"text":"b"}]`)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
				cmd.Env = append(os.Environ(), childFolder+"="+dir, childKill+"="+when)
				out, err := cmd.CombinedOutput()
				if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
					t.Fatalf("the process was not killed: %v: %s", err, out)
				}
				if when == "after" {
					want = []string{`{"id":2,"text":"b"}`}
				}
				if got := rows(t, l); !slices.Equal(got, want) {
					t.Errorf("rows %v, want %v", got, want)
				}
				if err := File(t.Context(), l, config(second)); err != nil {
					t.Fatal(err)
				}
				if got := rows(t, l); !slices.Equal(got, []string{`{"id":2,"text":"b"}`}) {
					t.Errorf("rows %v after another run", got)
				}
			})
		}
	}
}

// TestLostAnswer: a commit whose answer is lost has landed, which the table tells.
func TestLostAnswer(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.SetCatalog(&losing{l.Catalog()})
	if err := File(t.Context(), l, config(write(t, filepath.Join(dir, "first.parquet"), plainFields, `[{"id":1}]`))); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, l); len(got) != 1 {
		t.Errorf("rows %v", got)
	}
}

// losing is a catalog that loses its answers.
type losing struct{ catalog.Catalog }

func (l *losing) CommitTable(ctx context.Context, name table.Identifier, reqs []table.Requirement,
	updates []table.Update) (table.Metadata, string, error) {
	if _, _, err := l.Catalog.CommitTable(ctx, name, reqs, updates); err != nil {
		return nil, "", err
	}
	return nil, "", errors.New("the answer is lost")
}
