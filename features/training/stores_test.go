package training

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/streams/streamstest"
)

// All tests share the broker and the engine.
var broker kafka.Config

func TestMain(m *testing.M) {
	if os.Getenv(clickhouse.EnvListener) != "" { // the engine's process
		clickhousetest.Main(m)
	}
	cfg, stop, err := streamstest.StartBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	broker = cfg
	clickhousetest.Main(m, stop)
}

// testLayout is the layout of features/history, with names that are unique to a test.
type testLayout struct {
	suffix string
	facts  Slice
}

func (l testLayout) table(s *features.Source) clickhouse.Table {
	t := clickhouse.Table{
		Database: clickhouse.Features, Name: "facts_" + s.Name + l.suffix, Engine: "ReplacingMergeTree",
		PartitionBy: "toYYYYMM(at)", OrderBy: []string{"entity", "at", "fact_key", "log_partition", "log_offset", "log_index"},
		Columns: []clickhouse.Column{
			{Name: "entity", Type: "String"}, {Name: "fact_key", Type: "String"},
			{Name: "at", Type: "DateTime64(6, 'UTC')"}, {Name: "known_at", Type: "DateTime64(6, 'UTC')"},
			{Name: "retracted", Type: "UInt8"}, {Name: "log_partition", Type: "Int32"},
			{Name: "log_offset", Type: "Int64"}, {Name: "log_index", Type: "Int32"},
		},
	}
	for _, c := range s.Columns {
		kind := "Nullable(Int256)"
		if c.Kind == exact.Text {
			kind = "Nullable(String)"
		}
		t.Columns = append(t.Columns, clickhouse.Column{Name: c.Name, Type: kind})
	}
	return t
}

func (l testLayout) FactsTable(source string) string {
	return l.table(&features.Source{Name: source}).FullName()
}
func (l testLayout) FactsColumn(c features.Column) string { return "`" + c.Name + "`" }
func (l testLayout) FactsPositions(ctx context.Context, source string) (map[int32]int64, error) {
	p, err := l.facts.Positions(ctx, []*features.Source{{Name: source, Topic: "t"}})
	return p["t"], err
}

// insert creates the tables of sources and fills them with facts.
func (l testLayout) insert(t testing.TB, s *clickhouse.Store, sources []features.Source, facts Slice) {
	t.Helper()
	for i := range sources {
		table := l.table(&sources[i])
		if err := s.CreateTable(t.Context(), table); err != nil {
			t.Fatal(err)
		}
		for chunk := range slices.Chunk(facts[sources[i].Name], 200_000) {
			b, err := s.Batch(table, "")
			if err != nil {
				t.Fatal(err)
			}
			for c, values := range columnsOf(&sources[i], chunk) {
				if err := b.Column(c).Append(values); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Send(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// columnsOf returns facts as columns of their table.
func columnsOf(s *features.Source, facts []features.Fact) []any {
	n := len(facts)
	entity, key, at, known := make([]string, n), make([]string, n), make([]time.Time, n), make([]time.Time, n)
	retracted, partition, offset, index := make([]uint8, n), make([]int32, n), make([]int64, n), make([]int32, n)
	for i, f := range facts {
		entity[i], key[i], at[i], known[i] = f.Entity, f.Key, f.At, f.Known
		partition[i], offset[i], index[i] = f.Origin.Partition, f.Origin.Offset, f.Origin.Index
		if f.Retracted {
			retracted[i] = 1
		}
	}
	columns := []any{entity, key, at, known, retracted, partition, offset, index}
	for c := range s.Columns {
		numbers, texts := make([]*big.Int, n), make([]*string, n)
		for i := range facts {
			switch v := &facts[i].Values[c]; v.Kind {
			case exact.Number:
				numbers[i] = v.Int.Big()
			case exact.Text:
				texts[i] = &v.Text
			}
		}
		if s.Columns[c].Kind == exact.Text {
			columns = append(columns, texts)
		} else {
			columns = append(columns, numbers)
		}
	}
	return columns
}

// TestClickHouse: sets from tables are those from the facts themselves, with and without ranges, with
// copies of rows that ClickHouse has not removed yet, and up to positions only.
func TestClickHouse(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	// As commands connect to the engine of a running system.
	reader, err := clickhouse.OpenStore(clickhouse.StoreConfig{Server: clickhousetest.Shared(t).Server(clickhouse.Reader)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, change := range map[string]func(*Slice){
		"plain": func(*Slice) {},
		"with numbers of more than 64 bits": func(s *Slice) {
			for i := 0; i < len((*s)["orders"]); i += 50 {
				(*s)["orders"][i].Values[0] = exact.IntValue(exact.FromMoney(-1<<62, 0))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			facts, spine := randomFacts(3000, 7), writeSpine(t, randomSpine(200, 7))
			change(&facts)
			g := everyOutput()
			l := testLayout{"_" + strings.ReplaceAll(uuid.NewString(), "-", ""), facts}
			l.insert(t, s, g.Sources, facts)
			l.insert(t, s, g.Sources, Slice{"orders": facts["orders"][:500]}) // once more
			for i, known := range []string{KnownAt, KnownLatest, "seen"} {
				c, want := testConfig(t, spine, &ClickHouse{Store: reader, Layout: l}), testConfig(t, spine, facts)
				c.Known, want.Known = known, known
				c.Workers = 1 + 3*i
				if i == 1 { // not the last facts, and no lifetime windows
					half := Positions{"orders": {0: 1500}, "visits": {0: 1200}}
					c.Positions, want.Positions = half, half
					c.Features = []string{"f0_3us", "f3_10us", "f2_1us", "f28_10us"}
					want.Features = c.Features
				}
				m, err := Build(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				w, err := Build(t.Context(), want)
				if err != nil {
					t.Fatal(err)
				}
				if m.Output.SHA256 != w.Output.SHA256 || m.Facts.Used["orders"] != w.Facts.Used["orders"] {
					t.Errorf("%s: used %v, want %v", known, m.Facts.Used, w.Facts.Used)
				}
			}
		})
	}
}

// message is the value of the records of TestLog.
type message struct {
	Entity, Key, Text string
	At                int64
	Number            int64
	Retracted         bool
}

// logSource decodes messages.
func logSource(topic string) features.Source {
	return features.Source{Name: "messages", Topic: topic,
		Columns: []features.Column{{Name: "number", Kind: exact.Number}, {Name: "text", Kind: exact.Text}},
		Project: func(e event.Event) ([]features.Fact, error) {
			var m message
			if err := json.Unmarshal(e.Data, &m); err != nil {
				return nil, err
			}
			return []features.Fact{{Entity: m.Entity, Key: m.Key, At: tick(int(m.At)), Retracted: m.Retracted,
				Values: []exact.Value{exact.IntValue(exact.FromInt64(m.Number)), exact.TextValue(m.Text)}}}, nil
		},
	}
}

// TestLog: sets from the log are those from its facts, and repeat after more was appended.
func TestLog(t *testing.T) {
	t.Parallel()
	topic := "t-" + uuid.NewString()
	brokers := strings.Split(broker.Brokers, ",")
	producer := fetchtest.New(t, brokers, topic)
	if err := producer.CreateTopic(t.Context(), topic, 2); err != nil {
		t.Fatal(err)
	}
	g := &features.Group{Name: "log", Version: 1, Entity: "customer_id", Description: "d", Owner: "o",
		Sources: []features.Source{logSource(topic)},
		Features: []features.Feature{
			{Name: "n", Source: "messages", Aggregate: exact.Count, Windows: []features.Window{20_000, features.Lifetime}},
			{Name: "sum", Source: "messages", Aggregate: exact.Sum, Column: "number", Windows: []features.Window{50_000}},
			{Name: "top", Source: "messages", Aggregate: exact.Top, Column: "text", K: 3, Windows: []features.Window{features.Lifetime}},
		}}
	facts := Slice{}
	version := uint64(0)
	write := func(n int) {
		records := make([]fetchtest.Record, n)
		for i := range records {
			version++
			v := int(version)
			m := message{Entity: fmt.Sprint("c", v%12), Key: fmt.Sprint(v % 700), At: int64(v % 700 * 3), Number: int64(v), Text: fmt.Sprint(v % 5),
				Retracted: v%31 == 0}
			data, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if v%50 == 0 {
				data = []byte("unreadable")
			}
			partition := int32(v % 2)
			known := tick(int(m.At) + v%40)
			e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "test", Stream: m.Entity, Version: version, Type: "test.Event",
				Data: data, OccurredAt: known, RecordedAt: known, Position: event.Position{Sequence: version}}
			records[i] = fetchtest.Event(partition, e)
			if v%50 != 0 {
				// Offsets only have to order the versions of a fact.
				facts["messages"] = append(facts["messages"], features.Fact{Entity: m.Entity, Key: m.Key, At: tick(int(m.At)),
					Known: known, Retracted: m.Retracted, Origin: features.Origin{Partition: partition, Offset: int64(v)},
					Values: []exact.Value{exact.IntValue(exact.FromInt64(m.Number)), exact.TextValue(m.Text)}})
			}
		}
		if err := producer.Commit(t.Context(), topic, records...); err != nil {
			t.Fatal(err)
		}
	}
	write(2000)
	spine := writeSpine(t, randomSpine(200, 9))
	log := &Log{Brokers: brokers, Logger: streamstest.Quiet}
	c, want := testConfig(t, spine, log), testConfig(t, spine, facts)
	c.Groups, want.Groups = []*features.Group{g}, []*features.Group{g}
	c.Known, want.Known = KnownLatest, KnownLatest
	m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	w, err := Build(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if m.Output.SHA256 != w.Output.SHA256 {
		t.Errorf("the set from the log is %+v %+v, want %+v %+v", m.Output, m.Facts, w.Output, w.Facts)
	}
	first, err := os.ReadFile(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	write(500)
	again := testConfig(t, spine, log)
	again.Groups = c.Groups
	if err := m.Apply(&again); err != nil {
		t.Fatal(err)
	}
	if _, err := Repeat(t.Context(), m, again); err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(again.Out)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the repeated set differs: %v", err)
	}
	// The positions of another log.
	m.Facts.Positions[topic][0] += 1_000_000
	again.Positions = m.Facts.Positions
	if _, err := Repeat(t.Context(), m, again); err == nil || !strings.Contains(err.Error(), "another log") {
		t.Errorf("error %v", err)
	}
}

// TestSpineOfClickHouse: a spine may be a file that ClickHouse has written, with its types.
func TestSpineOfClickHouse(t *testing.T) {
	t.Parallel()
	query := "SELECT toString(number % 3) AS customer_id, toDateTime64('2026-03-01 12:00:00.000100', 6, 'UTC') + number AS event_time, " +
		"toDateTime('2026-03-01 12:00:00', 'UTC') AS seconds, toDateTime64('2026-03-01 12:00:00.5', 3, 'UTC') AS seen, " +
		"CAST(number AS Nullable(Decimal(38, 9))) AS amount, ['a', 'b'] AS tags, toUUID('0193a6f0-0000-7000-8000-000000000001') AS id, " +
		"toLowCardinality('x') AS kind FROM numbers(1000)"
	answer, err := clickhousetest.Shared(t).Client().Query(t.Context(), query, "Parquet", map[string]string{
		"output_format_parquet_string_as_string": "1", "output_format_parquet_datetime_as_uint32": "0"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(answer)
	if err = errors.Join(err, answer.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "spine.parquet")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c := testConfig(t, path, leakFacts())
	c.Groups = []*features.Group{leakGroup()}
	for _, at := range []string{"event_time", "seconds", "seen"} {
		c.At = at
		m, err := Build(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		columns, rows := readSet(t, c.Out)
		if m.Output.Rows != 1000 || len(rows) != 1000 || columns[0] != "customer_id" || columns[8] != "n_1h" {
			t.Errorf("%d rows with %v", len(rows), columns)
		}
	}
}
