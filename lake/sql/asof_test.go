package sql_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/lake/maintenance"
	lakesql "github.com/millrace/millrace/lake/sql"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
	pgserver "github.com/millrace/millrace/test/servers/postgres"
)

var catalogs pgserver.Cluster

// TestAsOf lands a topic in several commits and queries the table as of each of them: by time and
// by offsets, before and after a compaction, and after the history has been cut.
func TestAsOf(t *testing.T) {
	t.Parallel()
	for place, open := range map[string]func(t *testing.T) (lake.Config, lakesql.S3){
		"folder": func(t *testing.T) (lake.Config, lakesql.S3) {
			dir := t.TempDir()
			return lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db")}, lakesql.S3{}
		},
		"bucket, PostgreSQL": func(t *testing.T) (lake.Config, lakesql.S3) {
			store := objects.Config(t)
			params := url.Values{}
			for _, pair := range strings.Fields(catalogs.ConnString(t)) { // host=… user=… dbname=…
				key, value, _ := strings.Cut(pair, "=")
				params.Set(key, value)
			}
			return lake.Config{
					Warehouse: fmt.Sprintf("s3://%s/as-of", store.Bucket), Catalog: "postgres:///?" + params.Encode(),
					S3: lake.S3{Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: store.SecretKey},
				},
				lakesql.S3{Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: store.SecretKey}
		},
	} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			config, store := open(t)
			testAsOf(t, config, store)
		})
	}
}

const asOfTopic = "things"

// then is a moment to query later.
type then struct {
	taken   time.Time
	offsets map[int32]int64
	rows    []string // "partition,offset"
	columns bool     // whether the table had the column "late"
}

func testAsOf(t *testing.T, config lake.Config, store lakesql.S3) {
	brokers := kafkaserver.Embedded(t)
	p := fetchtest.New(t, []string{brokers}, "as-of")
	if err := p.CreateTopic(t.Context(), asOfTopic, 2); err != nil {
		t.Fatal(err)
	}
	name := lake.Name{declare.Namespace, "things"}
	config.Logger = slog.New(slog.DiscardHandler)
	config.Tables = []declare.Table{external.JSON(name, asOfTopic, false)}
	l, err := lake.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- landing.Run(ctx, l, landing.Config{Brokers: []string{brokers}, CommitInterval: 20 * time.Millisecond, WriteDeadLetters: func(_ context.Context, p []landing.DeadLetter) error { return p[0].Reason }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})

	moments := []then{{offsets: map[int32]int64{0: 0, 1: 0}}}
	var rows []string
	for i := range 5 {
		for partition := range int32(2) {
			if partition == 1 && i%2 == 1 {
				continue // a commit that moves one of them
			}
			at, err := p.Ends(t.Context(), asOfTopic)
			if err != nil {
				t.Fatal(err)
			}
			value := fmt.Sprintf(`{"n":%d}`, i)
			if i >= 3 {
				value = fmt.Sprintf(`{"n":%d,"late":true}`, i)
			}
			record := fetchtest.Record{Partition: partition, Value: []byte(value)}
			if err := p.Commit(t.Context(), asOfTopic, record, record); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, fmt.Sprintf("%d,%d", partition, at[partition]), fmt.Sprintf("%d,%d", partition, at[partition]+1))
		}
		ends, err := p.Ends(t.Context(), asOfTopic)
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the topic is in the table", func() bool {
			have, err := l.Applied(t.Context(), asOfTopic)
			if err != nil {
				t.Fatal(err)
			}
			return have[0] == ends[0] && have[1] == ends[1]
		})
		now := now(t, l)
		moments = append(moments, then{now.Taken, now.Offsets, append([]string(nil), rows...), i >= 3})
	}
	s := lakesql.New(nil, clickhousetest.Shared(t).Client(), store)
	for _, step := range []string{"landed", "compacted"} {
		for i, m := range moments {
			m.check(t, step, l, s, lake.AsOf{Offsets: map[string]map[int32]int64{asOfTopic: m.offsets}})
			if i > 0 {
				m.check(t, step, l, s, lake.AsOf{Time: m.taken})
			}
		}
		empty := moments[0]
		empty.check(t, step, l, s, lake.AsOf{Time: moments[1].taken.Add(-time.Hour)})
		if step == "compacted" {
			break
		}
		report, err := l.Maintain(t.Context(), name, maintenance.Config{DutyCycle: 1, SmallFiles: 2, KeepAge: time.Hour, KeepSnapshots: 100}, nil)
		if err != nil || report.Compacted.FilesBefore < 5 {
			t.Fatalf("compaction: %+v, %v", report, err)
		}
		last := moments[len(moments)-1]
		last.taken = now(t, l).Taken
		moments = append(moments, last) // the compaction's own snapshot
	}

	if config.S3.Endpoint == "" {
		for name, damage := range pinDamages {
			pins := filesBelow(t, config.Warehouse, "/as-of/")
			if len(pins) < len(moments)-2 {
				t.Fatalf("there are %d pins of %d moments", len(pins), len(moments))
			}
			for _, pin := range pins {
				damage(t, pin)
			}
			for i, m := range moments { // at run time, and as a new process
				m.check(t, name, l, s, lake.AsOf{Offsets: map[string]map[int32]int64{asOfTopic: m.offsets}})
				if i > 0 {
					m.check(t, name+", started again", l, lakesql.New(nil, clickhousetest.Shared(t).Client(), store), lake.AsOf{Time: m.taken})
				}
			}
		}
	}

	expire := func(by *lake.Lake) {
		t.Helper()
		if _, err := by.Maintain(t.Context(), name, maintenance.Config{DutyCycle: 1, SmallFiles: 2, KeepAge: time.Millisecond, KeepSnapshots: 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	// A running query keeps its files, although another process expires snapshots.
	past := lake.AsOf{Offsets: map[string]map[int32]int64{asOfTopic: moments[1].offsets}}
	states, err := l.TablesAsOf(t.Context(), past, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	release, err := l.Hold(t.Context(), states)
	if err != nil {
		t.Fatal(err)
	}
	other, err := lake.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	expire(other)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	moments[1].check(t, "held while snapshots expire", l, s, past)
	release()
	expire(l)
	if _, err := l.Hold(t.Context(), states); !errors.As(err, new(*lake.HistoryError)) {
		t.Errorf("hold a state that has been removed: %v", err)
	}
	for _, at := range []lake.AsOf{{Time: moments[1].taken}, {Offsets: map[string]map[int32]int64{asOfTopic: moments[1].offsets}}} {
		var history *lake.HistoryError
		_, err := rowsAsOf(t, l, s, at)
		if !errors.As(err, &history) || history.Since.IsZero() || len(history.Offsets) != 2 {
			t.Errorf("as of %v after history was cut: error %v", at, err)
		}
	}
	if _, err := rowsAsOf(t, l, s, lake.AsOf{Offsets: map[string]map[int32]int64{"nowhere": {0: 1}}}); err == nil || !strings.Contains(err.Error(), "no table for it") {
		t.Errorf("error %v", err)
	}
}

// pinDamages are damages to the files that pin past states, and to the leases beside them.
var pinDamages = map[string]func(t *testing.T, file string){
	"truncated": func(t *testing.T, file string) {
		t.Helper()
		change(t, file, func(raw []byte) []byte { return raw[:len(raw)/2] })
	},
	"emptied": func(t *testing.T, file string) {
		t.Helper()
		change(t, file, func([]byte) []byte { return nil })
	},
	"zeroed": func(t *testing.T, file string) {
		t.Helper()
		change(t, file, func(raw []byte) []byte { return make([]byte, len(raw)) })
	},
	"a flipped bit": func(t *testing.T, file string) {
		t.Helper()
		change(t, file, func(raw []byte) []byte {
			if len(raw) > 0 { // otherwise no query has pinned that moment since the file was emptied
				raw[len(raw)/2] ^= 1
			}
			return raw
		})
	},
	"the metadata of another moment": func(t *testing.T, file string) {
		t.Helper()
		change(t, file, func([]byte) []byte {
			raw, err := os.ReadFile(filesBelow(t, filepath.Dir(file), ".metadata.json")[0])
			if err != nil {
				t.Fatal(err)
			}
			return raw
		})
	},
	"deleted": func(t *testing.T, file string) {
		t.Helper()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	},
}

func change(t *testing.T, file string, how func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, how(raw), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func filesBelow(t *testing.T, dir, with string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(filepath.ToSlash(path), with) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func now(t *testing.T, l *lake.Lake) lake.TableState {
	t.Helper()
	states, err := l.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return states[0]
}

// rowsAsOf returns the table's rows as of a moment.
func rowsAsOf(t *testing.T, l *lake.Lake, s *lakesql.SQL, at lake.AsOf) (string, error) {
	t.Helper()
	body, read, err := s.RunOn(t.Context(), lakesql.AsOf(l, at),
		"SELECT _partition, _offset, * FROM things ORDER BY _partition, _offset", lakesql.FormatCSV)
	if err != nil {
		return "", err
	}
	if len(read) != 1 || read[0].Table != "things" || read[0].Topic != asOfTopic {
		t.Errorf("it read %v", read)
	}
	b, err := io.ReadAll(body)
	return string(b), errors.Join(err, body.Close())
}

// check compares the table as of a moment with what was in it then.
func (m then) check(t *testing.T, step string, l *lake.Lake, s *lakesql.SQL, at lake.AsOf) {
	t.Helper()
	answer, err := rowsAsOf(t, l, s, at)
	if err != nil {
		t.Errorf("%s, as of %v: %v", step, at, err)
		return
	}
	header, lines, _ := strings.Cut(strings.TrimSpace(answer), "\n")
	var have []string
	for line := range strings.Lines(lines) {
		partition, rest, _ := strings.Cut(line, ",")
		offset, _, _ := strings.Cut(rest, ",")
		have = append(have, partition+","+offset)
	}
	want := map[string]bool{}
	for _, row := range m.rows {
		want[row] = true
	}
	for _, row := range have {
		if !want[row] {
			t.Errorf("%s, as of %v: row %s was not there, or is there twice", step, at, row)
		}
		delete(want, row)
	}
	if len(want) > 0 {
		t.Errorf("%s, as of %v: rows %v are missing from %v", step, at, want, have)
	}
	if late := strings.Contains(header, `"late"`); len(m.rows) > 0 && late != m.columns {
		t.Errorf("%s, as of %v: columns %s", step, at, header)
	}
}
