package landing

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/location"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/test/servers/process"
)

// cities is a table that is partitioned by values of its records.
func cities(name, column string, transform iceberg.Transform) declare.Table {
	return declare.Table{
		Name: name, Topic: "cities", Partition: []declare.Partition{{Column: column, Transform: transform}},
		Columns: []columnar.Field{{Name: "city", Type: iceberg.PrimitiveTypes.String}, {Name: "mark", Type: iceberg.PrimitiveTypes.Binary}},
		Rows:    func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) { return cityRows{to}, nil },
	}
}

type cityRows struct{ to *columnar.Columns }

func (c cityRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	c.to.Column(0).(*columnar.Bytes).Append(r.Value)
	c.to.Column(1).(*columnar.Bytes).Append(r.Value)
	return declare.Appended{Rows: 1, AsOf: r.Time}, nil
}

// hostile has values that are paths, patterns, escapes, or too long for a file name.
func hostile() []string {
	all := []string{
		"Oslo", "a/b", "..", ".", "../../../../../../../../X", "/etc/passwd", `a\b`, "a%2Fb", "a%zz", "a b", " ", "", "é", "e\u0301", "🎉", "中文", "a\nb",
		strings.Repeat("x", 300), strings.Repeat("é/", 200), "null", "__HIVE_DEFAULT_PARTITION__", "city=Oslo", "%2e%2e%2f", "file:///etc/passwd", "s3://other/x",
	}
	for c := '!'; c <= '~'; c++ {
		all = append(all, "x"+string(c)+"y")
	}
	return all
}

// Locations contain nothing from records. So whatever a record contains, every reader finds every
// row, before and after compaction, and no file is created outside of the table's folder.
func TestLocationsHaveNoRecordContent(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		if err := s.producer.CreateTopic(t.Context(), "cities", partitions); err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			for i, city := range hostile() {
				if err := s.producer.Commit(t.Context(), "cities", fetchtest.Record{Partition: int32((i + round) % partitions), Value: []byte(city)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		config := fresh(t)
		config.Tables = []declare.Table{
			cities("by_city", "city", iceberg.IdentityTransform{}), cities("by_mark", "mark", iceberg.IdentityTransform{}),
			cities("by_start", "city", iceberg.TruncateTransform{Width: 3}), cities("by_bucket", "city", iceberg.BucketTransform{NumBuckets: 4}),
		}
		l := openLake(t, config)
		var names []string
		for _, decl := range config.Tables {
			names = append(names, decl.Name)
		}
		stop := start(t, l, s.runConfig())
		eventually(t, func() error {
			for _, name := range names {
				if rows := stateOf(t, l, name).Rows; rows != int64(2*len(hostile())) {
					return fmt.Errorf("%s has %d rows of %d", name, rows, 2*len(hostile()))
				}
			}
			return nil
		})
		mustStop(t, stop)
		check := func(when string) {
			for _, name := range names {
				have, err := l.Load(t.Context(), declare.Identifier(name))
				if err != nil {
					t.Fatal(err)
				}
				tasks, err := have.Scan().PlanFiles(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, task := range tasks {
					file := task.File.FilePath()
					folder, name := file[:strings.LastIndex(file, "/")], file[strings.LastIndex(file, "/")+1:]
					if folder != have.Location()+"/data" || location.Plain(name) != nil {
						t.Errorf("%s: a data file is %s", when, file)
					}
				}
			}
			read := 0
			for _, outside := range readOutside(t, interpreter, config, names) {
				read++
				if outside.Error != "" || len(outside.Rows) != 2*len(hostile()) {
					t.Errorf("%s: %s reads %d rows of %s, %s", when, outside.Reader, len(outside.Rows), outside.Table, outside.Error)
					continue
				}
				cities := map[string]int{}
				for _, row := range outside.Rows {
					if city := outside.named(row)["city"]; city != nil {
						cities[*city]++
					}
				}
				for _, city := range hostile() {
					if cities[city] != 2 {
						t.Errorf("%s: %s reads %+.40q %d times in %s", when, outside.Reader, city, cities[city], outside.Table)
					}
				}
			}
			if read != 2*len(names) {
				t.Errorf("%s: %d tables were read", when, read)
			}
		}
		check("landed")
		for _, name := range names {
			if _, err := l.Maintain(t.Context(), declare.Identifier(name), maintenance.Config{DutyCycle: 1}, nil); err != nil {
				t.Fatal(err)
			}
		}
		check("compacted")
		if config.S3.Endpoint == "" {
			onlyTables(t, config.Warehouse)
		}
	})
}

// Whatever a table's name is, it lands, every reader can read it, and its folder's name needs no
// escaping.
func TestTablesOfAnyName(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		if err := s.producer.CreateTopic(t.Context(), "cities", partitions); err != nil {
			t.Fatal(err)
		}
		if err := s.producer.Commit(t.Context(), "cities", fetchtest.Record{Value: []byte("Oslo")}, fetchtest.Record{Value: []byte("a/b")}); err != nil {
			t.Fatal(err)
		}
		config := fresh(t)
		config.Tables = nil
		names := []string{"my table", "tàb", "per%20cent", "q?r#s", "glob*[x]", "percent%", `back\slash`, strings.Repeat("n", 200), "🎉", "x:y", "UPPER"}
		for _, name := range names {
			decl := cities(name, "city", iceberg.IdentityTransform{})
			config.Tables = append(config.Tables, decl)
			decl.Namespace = "ns x.ünï"
			config.Tables = append(config.Tables, decl)
		}
		l := openLake(t, config)
		stop := start(t, l, s.runConfig())
		locations := map[string]bool{}
		for _, decl := range config.Tables {
			eventually(t, func() error {
				have, err := l.Load(t.Context(), decl.Identifier())
				if err != nil {
					return err
				}
				if rows := have.CurrentSnapshot(); rows == nil || rows.Summary.Properties["total-records"] != "2" {
					return fmt.Errorf("%q: %v", decl.Name, rows)
				}
				locations[have.Location()] = true
				return location.Plain(strings.TrimPrefix(strings.TrimPrefix(have.Location(), "file://"), "s3://"))
			})
		}
		mustStop(t, stop)
		if len(locations) != len(config.Tables) {
			t.Errorf("%d locations of %d tables: %v", len(locations), len(config.Tables), locations)
		}
		read := 0
		for _, outside := range readOutside(t, interpreter, config, names) {
			if read++; outside.Error != "" || len(outside.Rows) != 2 {
				t.Errorf("%s reads %d rows of %q, %s", outside.Reader, len(outside.Rows), outside.Table, outside.Error)
			}
		}
		if read != 2*len(names) {
			t.Errorf("%d tables were read", read)
		}
	})
}

// A new warehouse is refused if its own path needs escaping. An existing one keeps working.
func TestAmbiguousWarehouseLocations(t *testing.T) {
	t.Parallel()
	for name, plain := range map[string]bool{"lake": true, "a-b.c_d~e": true, "a b": false, "50%": false, "q?": false, "x#y": false, "é": false, "[a]": false, "*": false} {
		config := localLake(t)
		config.Warehouse = filepath.Join(t.TempDir(), name)
		l, err := lake.Open(t.Context(), config)
		if err == nil {
			err = l.Close()
		} else if plain || !strings.Contains(err.Error(), "disagree on the character") {
			t.Errorf("%q: %v", name, err)
			continue
		} else {
			continue
		}
		if !plain || err != nil {
			t.Errorf("%q: opened, %v", name, err)
		}
	}
	config := localLake(t)
	config.Warehouse = filepath.Join(t.TempDir(), "my lake")
	if err := os.MkdirAll(filepath.Join(config.Warehouse, "millrace.db"), 0o750); err != nil { // as an older version left it
		t.Fatal(err)
	}
	s := newShop(t)
	s.mustTrade(t, 50)
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
}

// onlyTables fails if the warehouse's folder, or its parent, has a file that belongs to no table.
func onlyTables(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Dir(root), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".parquet") && !strings.HasPrefix(path, root+"/millrace.db/by_") {
			t.Errorf("%s is in no table's folder", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Tables with files that iceberg-go's own file system named after partitions keep working: existing
// files are read, and new ones have plain names.
func TestOldPartitionedTablesContinue(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	old := "file://" + folder + "/t/data/city=a%2Fb/old.parquet"
	at := filepath.Join(folder, "t", "data", "city=a", "b") // where it was put
	if err := os.MkdirAll(at, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "old.parquet"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := location.Fence(location.Local{}, "file://"+folder+"/t")
	f, err := files.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := files.Remove(old); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(at, "old.parquet")); err == nil {
		t.Error("it is still there")
	}
}
