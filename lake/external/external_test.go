package external_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/landing"
)

var quiet = slog.New(slog.DiscardHandler)

// files writes .proto files to a new folder.
func files(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	clicks = `syntax = "proto3"; package web;
import "google/protobuf/timestamp.proto"; import "google/type/money.proto"; import "common/who.proto";
message Click {
  // Where it happened.
  string page = 1;
  optional int64 position = 2;
  Who who = 3;
  google.protobuf.Timestamp at = 4;
  google.type.Money worth = 5;
  message Inner { string a = 1; }
}`
	who   = `syntax = "proto3"; package web; message Who { string id = 1; }`
	later = `syntax = "proto3"; package web; import "common/who.proto";
message Click { string url = 1; optional int64 position = 2; Who who = 3; string referrer = 9; }`
)

func TestMessage(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"clicks.proto": clicks, "common/who.proto": who})
	elsewhere := files(t, map[string]string{"clicks.proto": clicks})
	path := filepath.Join(dir, "clicks.proto")
	md, err := external.Message(t.Context(), path, "web.Click")
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	collect(set, md.ParentFile(), map[string]bool{})
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "clicks.binpb")
	if err := os.WriteFile(binary, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, name string
		folders    []string
		want       string // full name, or what the error says
	}{
		{path, "Click", nil, "web.Click"},
		{path, "Click.Inner", nil, "web.Click.Inner"},
		{filepath.Join(elsewhere, "clicks.proto"), "Click", []string{dir}, "web.Click"},
		{binary, "Click", nil, "web.Click"},
		{binary, "Who", nil, "web.Who"},
		{path, "Clack", nil, `has no message "Clack"; it has web.Click, web.Click.Inner`},
		{filepath.Join(elsewhere, "clicks.proto"), "Click", nil, "common/who.proto"},
		{filepath.Join(dir, "none.proto"), "Click", nil, "none.proto"},
		{os.Args[0], "Click", nil, "neither a .proto file nor a descriptor set"},
	} {
		md, err := external.Message(t.Context(), c.file, c.name, c.folders...)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = string(md.FullName())
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %s, want %s", c.file, c.name, got, c.want)
		}
	}
}

func collect(set *descriptorpb.FileDescriptorSet, f protoreflect.FileDescriptor, seen map[string]bool) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		collect(set, f.Imports().Get(i).FileDescriptor, seen)
	}
	set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
}

// A topic lands with a column for each field. When the message changes, the table changes, and
// landed rows stay.
func TestTopicLands(t *testing.T) {
	t.Parallel()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	p := fetchtest.New(t, []string{b.Addr()}, "clicks-"+b.Boot())
	const topic = "clicks"
	if err := p.CreateTopic(t.Context(), topic, 2); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"), Logger: quiet}
	name := lake.Name{"web", "clicks"}
	var deadLetters atomic.Int64

	land := func(text, value string, records int) {
		at := files(t, map[string]string{"clicks.proto": text, "common/who.proto": who})
		md, err := external.Message(t.Context(), filepath.Join(at, "clicks.proto"), "Click")
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			m := dynamicpb.NewMessage(md)
			if err := prototext.Unmarshal([]byte(fmt.Sprintf(value, i)), m); err != nil {
				t.Fatal(err)
			}
			v, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			r := fetchtest.Record{Partition: int32(i % 2), Key: []byte("k"), Value: v}
			if i == 1 {
				r.Key = nil
				r.Value = append([]byte{0, 0, 0, 0, 7, 0}, v...) // as a schema registry frames it
			}
			if err := p.Commit(t.Context(), topic, r, fetchtest.Record{Partition: 0, Value: []byte{0xff}}); err != nil {
				t.Fatal(err)
			}
		}
		ends, err := p.Ends(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		table, err := external.Proto(name, topic, md)
		if err != nil {
			t.Fatal(err)
		}
		config.Tables = []declare.Table{table}
		l, err := lake.Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- landing.Run(ctx, l, landing.Config{
				Brokers: []string{b.Addr()}, Instance: "test", Landers: 2,
				WriteDeadLetters: func(_ context.Context, p []landing.DeadLetter) error { deadLetters.Add(int64(len(p))); return nil },
			})
		}()
		polltest.Until(t, "the topic is in the table", func() bool {
			have, err := l.Applied(t.Context(), topic)
			if err != nil {
				t.Fatal(err)
			}
			return have[0] >= ends[0] && have[1] >= ends[1]
		})
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	land(clicks, `page: "/%d" who { id: "w" } at { seconds: 5 } worth { currency_code: "EUR" units: 2 nanos: 500000000 }`, 10)
	land(later, `url: "/%d" position: 3 referrer: "r"`, 4)
	if deadLetters.Load() != 14 {
		t.Errorf("%d dead letters, want 14", deadLetters.Load())
	}

	config.ReadOnly = true
	l, err := lake.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	list, err := l.Files(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	rows := 0
	for _, f := range list {
		data := read(t, strings.TrimPrefix(f.Path, "file://"))
		rows += int(data.NumRows())
		var columns []string
		for _, field := range data.Schema().Fields() {
			columns = append(columns, field.Name)
		}
		for _, want := range []string{"_key", "_timestamp", "_topic", "_partition", "_offset", "_unknown"} {
			if !slices.Contains(columns, want) {
				t.Errorf("column %s is missing from %v", want, columns)
			}
		}
		for _, column := range []string{"page", "url", "worth", "worth_currency", "referrer", "position", "_key"} {
			if i := data.Schema().FieldIndices(column); len(i) == 1 {
				for _, chunk := range data.Column(i[0]).Data().Chunks() {
					counts[column] += chunk.Len() - chunk.NullN()
				}
			}
		}
	}
	want := map[string]int{"page": 10, "url": 4, "worth": 10, "worth_currency": 10, "referrer": 4, "position": 4, "_key": 12}
	if rows != 14 || fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("%d rows with values in %v, want %v", rows, counts, want)
	}
	s, err := l.Summarize(t.Context(), name)
	if err != nil || s.Rows != 14 || s.Name != "web.clicks" || s.AsOf.IsZero() {
		t.Errorf("%+v, %v", s, err)
	}
	history, err := l.Snapshots(t.Context(), name)
	if err != nil || len(history) < 2 || !history[0].Current || history[0].Offsets == "" || history[0].Rows != 14 {
		t.Errorf("history %+v, %v", history, err)
	}
}

func read(t *testing.T, path string) arrow.Table {
	t.Helper()
	f, err := file.OpenParquetFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	data, err := r.ReadTable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(data.Release)
	return data
}

// rowsOf returns the rows of a file. Numbers stay as written.
func rowsOf(t *testing.T, data arrow.Table) (rows []map[string]any) {
	t.Helper()
	r := array.NewTableReader(data, -1)
	defer r.Release()
	for r.Next() {
		b, err := r.RecordBatch().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var some []map[string]any
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&some); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, some...)
	}
	return rows
}
