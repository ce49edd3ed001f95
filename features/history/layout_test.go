package history

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/streams/streamstest"
)

// Training sets from the tables, from the log, and from the facts themselves have the same bytes, in
// each mode of known times, and again after more was written.
func TestTrainingSets(t *testing.T) {
	t.Parallel()
	type row struct {
		Customer string    `parquet:"customer_id"`
		At       time.Time `parquet:"event_time,timestamp(microsecond)"`
	}
	w := newWorld(t, 5)
	s := clickhousetest.OpenStore(t)
	h := open(t, w.config(s))
	running(t, h)
	w.trade(t, 120)
	w.filled(t, h)
	var spine []row
	for range 150 {
		spine = append(spine, row{w.entity(), time.UnixMicro(w.at()).UTC()})
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "spine.parquet")
	must(t, parquet.WriteFile(path, spine))
	stores := map[string]training.Facts{
		"facts": training.Slice{w.group.Sources[0].Name: w.facts},
		"log":   &training.Log{Brokers: strings.Split(broker.Brokers, ","), Logger: streamstest.Quiet},
		"table": &training.ClickHouse{Store: s, Layout: h},
	}
	var first []byte
	var manifest training.Manifest
	for _, known := range []string{training.KnownAt, training.KnownLatest} {
		var sum string
		for _, name := range []string{"facts", "log", "table"} {
			out := filepath.Join(dir, name+known)
			m, err := training.Build(t.Context(), training.Config{Spine: path, At: "event_time",
				Known: known, Groups: []*features.Group{w.group}, Out: out, Facts: stores[name], TempDir: dir})
			must(t, err)
			if sum == "" {
				sum = m.Output.SHA256
			}
			if m.Output.SHA256 != sum {
				t.Errorf("known %s: the set from the %s differs", known, name)
			}
			manifest = m
			first, err = os.ReadFile(out)
			must(t, err)
		}
	}
	w.trade(t, 60)
	w.filled(t, h)
	for _, name := range []string{"log", "table"} {
		c := training.Config{Groups: []*features.Group{w.group}, Facts: stores[name], Out: filepath.Join(dir, "again"), TempDir: dir}
		must(t, manifest.Apply(&c))
		_, err := training.Repeat(t.Context(), manifest, c)
		must(t, err)
		again, err := os.ReadFile(c.Out)
		must(t, err)
		if string(again) != string(first) {
			t.Errorf("the repeated set from the %s differs", name)
		}
	}
}
