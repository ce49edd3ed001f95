package external_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/landing"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
	registryserver "github.com/millrace/millrace/test/servers/registry"
)

// The servers that the tests need.
var (
	brokers  kafkaserver.Cluster
	registry registryserver.Server
)

func TestMain(m *testing.M) {
	if where := os.Getenv(childPlace); where != "" {
		fmt.Fprintln(os.Stderr, childLands(where)) // it is killed before
		os.Exit(1)
	}
	code := m.Run()
	if err := errors.Join(brokers.Stop(), registry.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// world is a topic, and the lake in which it lands.
type world struct {
	brokers  string
	topic    string
	name     lake.Name
	config   lake.Config
	producer *fetchtest.Producer
	instance string // name of the landers; that of a killed child after startChild

	mu          sync.Mutex
	deadLetters map[string]string // reasons by partition/offset
}

func newWorld(t *testing.T, brokers string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		brokers: brokers, topic: strings.NewReplacer("/", "-", " ", "-", ",", "").Replace(t.Name()), name: lake.Name{"web", "things"}, deadLetters: map[string]string{},
		config: lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"), Logger: quiet},
	}
	w.producer = fetchtest.New(t, []string{brokers}, w.topic+filepath.Base(dir))
	if err := w.producer.CreateTopic(t.Context(), w.topic, 2); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) put(t testing.TB, partition int32, values ...string) {
	t.Helper()
	records := make([]fetchtest.Record, len(values))
	for i, v := range values {
		records[i] = fetchtest.Record{Partition: partition, Key: []byte("k"), Value: []byte(v)}
	}
	if err := w.producer.Commit(t.Context(), w.topic, records...); err != nil {
		t.Fatal(err)
	}
}

// start lands the table until the returned function is called.
func (w *world) start(t *testing.T, table declare.Table) (l *lake.Lake, stop func()) {
	t.Helper()
	c := w.config
	c.Tables = []declare.Table{table}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- landing.Run(ctx, l, landing.Config{Brokers: []string{w.brokers}, Instance: w.instance, Landers: 2, WriteDeadLetters: w.writeDeadLetters})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func (w *world) writeDeadLetters(_ context.Context, records []landing.DeadLetter) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range records {
		w.deadLetters[fmt.Sprintf("%d/%d", p.Partition, p.Offset)] = p.Reason.Error()
	}
	return nil
}

// reasons returns the distinct reasons of dead letters, in order.
func (w *world) reasons() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Compact(slices.Sorted(maps.Values(w.deadLetters))), "; ")
}

// landed waits until all records of the topic are in the table.
func (w *world) landed(t *testing.T, l *lake.Lake) {
	t.Helper()
	ends, err := w.producer.Ends(t.Context(), w.topic)
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the topic is in the table", func() bool {
		have, err := l.Applied(t.Context(), w.topic)
		if err != nil {
			t.Fatal(err)
		}
		return have[0] >= ends[0] && have[1] >= ends[1]
	})
}

// land lands all records of the topic.
func (w *world) land(t *testing.T, table declare.Table) {
	t.Helper()
	l, stop := w.start(t, table)
	w.landed(t, l)
	stop()
}

// rows returns the table's rows by partition and offset, each as JSON without nulls and origin.
func (w *world) rows(t *testing.T) map[string]string {
	t.Helper()
	c := w.config
	c.ReadOnly, c.Tables = true, []declare.Table{}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	list, err := l.Files(t.Context(), w.name)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, f := range list {
		data := read(t, strings.TrimPrefix(f.Path, "file://"))
		for _, row := range rowsOf(t, data) {
			at := fmt.Sprintf("%v/%v", row["_partition"], row["_offset"])
			for name, v := range row {
				if v == nil || slices.Contains([]string{"_partition", "_offset", "_topic", "_timestamp", "_timestamp_raw", "_key"}, name) {
					delete(row, name)
				}
			}
			b, err := json.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			if other, twice := all[at]; twice {
				t.Errorf("%s is duplicated: %s and %s", at, other, b)
			}
			all[at] = string(b)
		}
	}
	return all
}

// holds returns the number of rows, 0 if there is no table.
func (w *world) holds(t *testing.T) int64 {
	t.Helper()
	c := w.config
	c.ReadOnly, c.Tables = true, []declare.Table{}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		return 0 // not yet
	}
	defer func() { _ = l.Close() }()
	s, err := l.Summarize(t.Context(), w.name)
	if err != nil {
		return 0
	}
	return s.Rows
}

// have compares the rows of a partition, in order, with the expected ones.
func (w *world) have(t *testing.T, want map[int32][]string) {
	t.Helper()
	rows := w.rows(t)
	n := 0
	for partition, texts := range want {
		var have []string
		for offset := range 10_000 {
			if row, ok := rows[fmt.Sprintf("%d/%d", partition, offset)]; ok {
				have = append(have, row)
			}
		}
		if !slices.Equal(have, texts) {
			t.Errorf("partition %d has\n%s\nwant\n%s", partition, strings.Join(have, "\n"), strings.Join(texts, "\n"))
		}
		n += len(have)
	}
	if n != len(rows) {
		t.Errorf("%d rows, of which %d are looked at", len(rows), n)
	}
}

// eventually retries until there is no error.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	var last error
	defer func() {
		if t.Failed() {
			t.Log(last)
		}
	}()
	polltest.Until(t, "no error", func() bool {
		last = try()
		return last == nil
	})
}
