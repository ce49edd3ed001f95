package landing

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/test/servers/process"
)

// An earlier version escaped the locations of files of tables partitioned by strings, but wrote the
// files to the decoded paths. Maintenance makes them readable for every engine and continues to
// maintain them.
func TestMaintenanceMovesMisplacedFiles(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	s := newShop(t)
	if err := s.producer.CreateTopic(t.Context(), "cities", partitions); err != nil {
		t.Fatal(err)
	}
	old := []string{"Oslo", "a/b", "São Paulo", "100%", "a:b@c", "x y"}
	land := func(l *lake.Lake, cities ...string) {
		t.Helper()
		before := stateOf(t, l, "by_city").Rows
		for _, city := range cities {
			if err := s.producer.Commit(t.Context(), "cities", fetchtest.Record{Value: []byte(city)}); err != nil {
				t.Fatal(err)
			}
		}
		stop := start(t, l, s.runConfig())
		eventually(t, func() error {
			if rows := stateOf(t, l, "by_city").Rows; rows != before+int64(len(cities)) {
				return fmt.Errorf("%d rows", rows)
			}
			return nil
		})
		mustStop(t, stop)
	}
	config := localLake(t)
	config.Tables = []declare.Table{cities("by_city", "city", iceberg.IdentityTransform{})}
	l := openLake(t, config)
	land(l, old...)
	age(t, l, "by_city")

	names := []string{"by_city"}
	cityOf := func(want []string) error {
		for _, outside := range readOutside(t, interpreter, config, names) {
			var have []string
			for _, row := range outside.Rows {
				if city := outside.named(row)["city"]; city != nil {
					have = append(have, *city)
				}
			}
			slices.Sort(have)
			if !slices.Equal(have, want) {
				return fmt.Errorf("%s reads %q, %s", outside.Reader, have, outside.Error)
			}
		}
		return nil
	}
	want := slices.Sorted(slices.Values(old))
	if len(misplaced(t, l, "by_city")) == 0 {
		t.Fatal("every file is where its location says: this tests nothing")
	}
	if _, err := l.Maintain(t.Context(), declare.Identifier("by_city"), maintenance.Config{DutyCycle: 1, SmallFiles: 100}, nil); err != nil {
		t.Fatal(err)
	}
	if err := cityOf(want); err != nil {
		t.Error(err)
	}
	land(l, "a/b", "Oslo") // and landing continues
	want = slices.Sorted(slices.Values(append(want, "a/b", "Oslo")))
	if err := cityOf(want); err != nil {
		t.Error(err)
	}
	if _, err := l.Maintain(t.Context(), declare.Identifier("by_city"), maintenance.Config{DutyCycle: 1, SmallFiles: 2}, nil); err != nil {
		t.Fatal(err)
	}
	if err := cityOf(want); err != nil {
		t.Errorf("compacted: %v", err)
	}
}

// misplaced returns the data files that are not at their locations.
func misplaced(t *testing.T, l *lake.Lake, name string) (all []string) {
	t.Helper()
	files, err := l.Files(t.Context(), declare.Identifier(name))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := os.Stat(strings.TrimPrefix(f.Path, "file://")); err != nil {
			all = append(all, f.Path)
		}
	}
	return all
}

// age turns a table into what an earlier version left: the location of each data file contains its
// partition, escaped, and the file is at the decoded path.
func age(t *testing.T, l *lake.Lake, name string) {
	t.Helper()
	have, err := l.Load(t.Context(), declare.Identifier(name))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := have.Scan().PlanFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var olds, news []iceberg.DataFile
	for _, task := range tasks {
		f := task.File
		path := strings.TrimPrefix(f.FilePath(), "file://")
		var city string
		for _, v := range f.Partition() {
			city = fmt.Sprint(v)
		}
		folder := filepath.Dir(path)
		target := filepath.Join(folder, "city="+city, filepath.Base(path))
		if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, target); err != nil {
			t.Fatal(err)
		}
		at := "file://" + folder + "/city=" + strings.ReplaceAll(url.QueryEscape(city), "+", "%20") + "/" + filepath.Base(path)
		b, err := iceberg.NewDataFileBuilder(have.Spec(), f.ContentType(), at, f.FileFormat(), f.Partition(), nil, nil, f.Count(), f.FileSizeBytes())
		if err != nil {
			t.Fatal(err)
		}
		olds, news = append(olds, f), append(news, b.Build())
	}
	tx := have.NewTransaction()
	if err := tx.ReplaceDataFilesWithDataFiles(t.Context(), olds, news, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A table that an earlier version allowed to place files outside of its folder keeps doing so, as
// long as they are in the warehouse.
func TestOldTablesWithOutsideFilesContinue(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"data": table.WriteDataPathKey, "metadata": table.WriteMetadataPathKey} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.mustTrade(t, 30)
			config := ordersOnly(localLake(t))
			l := openLake(t, config)
			beside := "file://" + config.Warehouse + "/elsewhere/" + name
			setProperty(t, l, tables.OrdersEvents, key, beside)
			stop := start(t, l, s.runConfig())
			s.landed(t, l)
			s.mustTrade(t, 30)
			s.landed(t, l)
			mustStop(t, stop)
			files, err := filepath.Glob(filepath.Join(config.Warehouse, "elsewhere", name, "*"))
			if err != nil || len(files) == 0 {
				t.Errorf("its files: %v, %v", files, err)
			}
			if _, err := l.Maintain(t.Context(), tables.OrdersEvents.Identifier(), maintenance.Config{DutyCycle: 1, SmallFiles: 2}, nil); err != nil {
				t.Fatal(err)
			}
			s.check(t, l)
		})
	}
	s := newShop(t)
	s.mustTrade(t, 10)
	l := openLake(t, ordersOnly(localLake(t)))
	setProperty(t, l, tables.OrdersEvents, table.WriteDataPathKey, "file://"+t.TempDir()) // not in the warehouse
	run := s.runConfig()
	stop := start(t, l, run)
	eventually(t, func() error {
		if all := l.Stopped(); len(all) != 1 || all[0].Table != tables.OrdersEvents.Name || all[0].Remedy != faults.RemedyOutside {
			return fmt.Errorf("stopped: %v", all)
		}
		return nil
	})
	s.landed(t, l) // the others
	mustStop(t, stop)
}
