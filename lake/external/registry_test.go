package external_test

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/internal/polltest"
	reg "github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/external"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// subject registers schemas and writes values with them, like other producers.
type subject struct {
	t    *testing.T
	api  *sr.Client
	name string
}

func newSubject(t *testing.T, url, name string) *subject {
	t.Helper()
	api, err := sr.NewClient(sr.URLs(url), sr.HTTPClient(&http.Client{Timeout: time.Minute})) // its default is 5 s
	if err != nil {
		t.Fatal(err)
	}
	return &subject{t, api, name}
}

func (s *subject) register(name string, schema sr.Schema) sr.SubjectSchema {
	s.t.Helper()
	made, err := s.api.CreateSchema(s.t.Context(), name, schema)
	if err != nil {
		s.t.Fatal(err)
	}
	return made
}

func frame(id int, message ...byte) string {
	return string(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(id)), message...))
}

// avro registers a schema and returns a function that encodes values, given as Avro's JSON, with
// it.
func (s *subject) avro(schema string, references ...sr.SchemaReference) func(value string) string {
	s.t.Helper()
	id := s.register(s.name, sr.Schema{Schema: schema, Type: sr.TypeAvro, References: references}).ID
	return func(value string) string {
		s.t.Helper()
		parsed, err := avro.Parse(schema)
		if err != nil {
			s.t.Fatal(err)
		}
		var v any
		if err := parsed.DecodeJSON([]byte(value), &v, avro.TaggedUnions()); err != nil {
			s.t.Fatal(err)
		}
		b, err := parsed.Encode(v)
		if err != nil {
			s.t.Fatal(err)
		}
		return frame(id, b...)
	}
}

// protobuf is the same for a file and the index of its message.
func (s *subject) protobuf(text string, index int, references ...sr.SchemaReference) func(value string) string {
	s.t.Helper()
	id := s.register(s.name, sr.Schema{Schema: text, Type: sr.TypeProtobuf, References: references}).ID
	return func(value string) string {
		s.t.Helper()
		file, err := reg.CompileProto(s.t.Context(), reg.Schema{Text: text, References: []reg.Reference{{Name: "common/who.proto", Text: who}}})
		if err != nil {
			s.t.Fatal(err)
		}
		m := dynamicpb.NewMessage(file.Messages().Get(index))
		if err := prototext.Unmarshal([]byte(value), m); err != nil {
			s.t.Fatal(err)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			s.t.Fatal(err)
		}
		path := []byte{0}
		if index > 0 {
			path = []byte{2, byte(2 * index)} // zigzag: one step, then it
		}
		return frame(id, append(path, b...)...)
	}
}

func client(t *testing.T, url string) *reg.Client {
	t.Helper()
	return clientWithin(t, url, time.Minute) // only a hang exceeds it
}

func clientWithin(t *testing.T, url string, timeout time.Duration) *reg.Client {
	t.Helper()
	c, err := reg.NewClient(reg.Config{URL: url, Logger: quiet, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func record(fields string) string {
	return `{"type":"record","name":"Order","namespace":"shop","fields":[` + fields + `]}`
}

// Values of several schemas land in one table, in any order. Incompatible ones become dead letters
// with the reason.
func TestAvroLands(t *testing.T) {
	t.Parallel()
	brokers.Each(t, func(t *testing.T, brokers string) {
		at := registry.URL(t)
		w := newWorld(t, brokers)
		s := newSubject(t, at, w.topic+"-value")
		first := s.avro(record(`{"name":"id","type":"string"},{"name":"n","type":"int"},{"name":"gone","type":["null","string"]}`))
		w.put(t, 0, first(`{"id":"a","n":1,"gone":{"string":"g"}}`))
		table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, at))
		if err != nil {
			t.Fatal(err)
		}
		l, stop := w.start(t, table)
		w.landed(t, l)
		second := s.avro(record(`{"name":"id","type":"string"},{"name":"n","type":"long"},{"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[{"name":"sku","type":"string"}]}}}`))
		bad := s.avro(record(`{"name":"id","type":"string"},{"name":"n","type":"string"}`))
		w.put(t, 0, second(`{"id":"b","n":5000000000,"lines":[{"sku":"s"}]}`), bad(`{"id":"c","n":"x"}`), first(`{"id":"d","n":2,"gone":null}`), "no frame", frame(1<<30))
		w.put(t, 1, first(`{"id":"e","n":3,"gone":null}`)+"!")
		w.landed(t, l)
		stop()
		w.have(t, map[int32][]string{0: {
			`{"gone":"g","id":"a","n":1}`, `{"id":"b","lines":[{"sku":"s"}],"n":5000000000}`, `{"id":"d","n":2}`,
		}})
		reasons := w.reasons()
		for _, want := range []string{
			"is incompatible with the table: column n: the table has long and these rows have string", "not framed for a schema registry",
			"schema 1073741824: ", "1 bytes follow its end",
		} {
			if !strings.Contains(reasons, want) {
				t.Errorf("dead letters: %s, want %s", reasons, want)
			}
		}
		// A lander that starts later begins with the table's columns, whatever the newest schema
		// is.
		if _, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{Name: "nowhere"}, client(t, at)); err == nil || !strings.Contains(err.Error(), "nowhere") {
			t.Errorf("error %v", err)
		}
	})
}

// If a newer schema renames a field with an alias, its column is renamed. Rows of both schemas, in
// any order, are in one column, also after landers restart.
func TestAvroAliases(t *testing.T) {
	t.Parallel()
	at := registry.URL(t)
	w := newWorld(t, kafkaserver.Embedded(t))
	s := newSubject(t, at, w.topic+"-value")
	inner := func(fields string) string {
		return `{"name":"in","type":{"type":"record","name":"I","fields":[` + fields + `]}}`
	}
	first := s.avro(record(`{"name":"name","type":"string"},` + inner(`{"name":"x","type":"int"}`)))
	w.put(t, 0, first(`{"name":"a","in":{"x":1}}`))
	land := func() {
		t.Helper()
		table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, at))
		if err != nil {
			t.Fatal(err)
		}
		w.land(t, table)
	}
	land()
	second := s.avro(record(`{"name":"full_name","type":"string","aliases":["name"]},` + inner(`{"name":"y","type":"long","aliases":["x"]}`)))
	w.put(t, 0, first(`{"name":"b","in":{"x":2}}`), second(`{"full_name":"c","in":{"y":3}}`), first(`{"name":"d","in":{"x":4}}`))
	land()
	w.put(t, 0, first(`{"name":"e","in":{"x":5}}`))
	land()
	third := s.avro(record(`{"name":"called","type":"string","aliases":["name","full_name"]},` + inner(`{"name":"y","type":"long","aliases":["x"]}`)))
	w.put(t, 0, third(`{"called":"f","in":{"y":6}}`), first(`{"name":"g","in":{"x":7}}`), second(`{"full_name":"h","in":{"y":8}}`))
	land()
	if len(w.deadLetters) != 0 {
		t.Errorf("dead letters: %v", w.deadLetters)
	}
	if got, want := w.columns(t), "in struct<y long>, called string"; got != want && got != "called string, in struct<y long>" {
		t.Errorf("columns %s, want %s", got, want)
	}
	var names []string
	for _, row := range w.scan(t, "called") {
		names = append(names, fmt.Sprint(row["called"]))
	}
	slices.Sort(names)
	if got, want := strings.Join(names, ""), "abcdefgh"; got != want {
		t.Errorf("the column has %s, want %s", got, want)
	}
}

// A lander that is killed while an alias renames a column, before or after the commit, leaves a
// table that the next one completes: one column with the values of both schemas, each once.
func TestKilledWhileAnAliasRenames(t *testing.T) {
	t.Parallel()
	at := registry.URL(t)
	for _, moment := range []string{killGrow, killGrown, killAfter} {
		t.Run(moment, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kafkaserver.Embedded(t))
			s := newSubject(t, at, w.topic+"-value")
			first := s.avro(record(`{"name":"name","type":"string"}`))
			w.put(t, 0, first(`{"name":"a"}`), first(`{"name":"b"}`))
			died := w.startChild(t, at, moment, "1")
			polltest.Until(t, "the child has landed what was there", func() bool { return w.holds(t) == 2 })
			second := s.avro(record(`{"name":"full_name","type":"string","aliases":["name"]}`))
			w.put(t, 0, second(`{"full_name":"c"}`), first(`{"name":"d"}`), second(`{"full_name":"e"}`))
			died()
			table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, at))
			if err != nil {
				t.Fatal(err)
			}
			w.land(t, table)
			if got, want := w.columns(t), "full_name string"; got != want {
				t.Errorf("columns %s, want %s", got, want)
			}
			var names []string
			for _, row := range w.scan(t, "full_name") {
				names = append(names, fmt.Sprint(row["full_name"]))
			}
			slices.Sort(names)
			if got, want := strings.Join(names, ""), "abcde"; got != want || len(w.deadLetters) > 0 {
				t.Errorf("the column has %s, want %s; dead letters: %v", got, want, w.deadLetters)
			}
		})
	}
}

// An Avro record without fields is a row with its origin only, as in Protobuf.
func TestAvroWithoutFieldsLands(t *testing.T) {
	t.Parallel()
	at := registry.URL(t)
	w := newWorld(t, kafkaserver.Embedded(t))
	s := newSubject(t, at, w.topic+"-value")
	empty := s.avro(record(``))
	w.put(t, 0, empty(`{}`), empty(`{}`)+"!", empty(`{}`))
	land := func() {
		t.Helper()
		table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, at))
		if err != nil {
			t.Fatal(err)
		}
		w.land(t, table)
	}
	land()
	more := s.avro(record(`{"name":"a","type":["null","int"],"default":null}`))
	w.put(t, 0, more(`{"a":{"int":1}}`), empty(`{}`))
	land()
	w.have(t, map[int32][]string{0: {`{}`, `{}`, `{"a":1}`, `{}`}})
	if len(w.deadLetters) != 1 {
		t.Errorf("dead letters: %v", w.deadLetters)
	}
}

func TestProtobufLands(t *testing.T) {
	t.Parallel()
	at := registry.URL(t)
	w := newWorld(t, kafkaserver.Embedded(t))
	s := newSubject(t, at, w.topic+"-value")
	made := s.register("common/who.proto", sr.Schema{Schema: who, Type: sr.TypeProtobuf})
	reference := sr.SchemaReference{Name: "common/who.proto", Subject: "common/who.proto", Version: made.Version}
	file := func(fields string) string {
		return `syntax = "proto3"; package web; import "common/who.proto"; message Click { ` + fields + ` } message Other { string x = 1; }`
	}
	older := file(`string page = 1; int32 n = 2; Who who = 3; string gone = 4;`)
	newer := file(`string page = 1; int64 n = 2; Who who = 3; string referrer = 5;`)
	first, other := s.protobuf(older, 0, reference), s.protobuf(older, 1, reference)
	w.put(t, 0, first(`page: "/a" n: 1 who { id: "w" } gone: "g"`), other(`x: "x"`))
	c := client(t, at)
	table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, c)
	if err != nil {
		t.Fatal(err)
	}
	l, stop := w.start(t, table)
	w.landed(t, l)
	second := s.protobuf(newer, 0, reference)
	w.put(t, 0, second(`page: "/b" n: 5000000000 referrer: "r"`), first(`page: "/c" n: 3 gone: "h"`))
	w.landed(t, l)
	stop()
	rows := w.rows(t)
	// The older schema's n is no longer wide enough, so the newer one decodes its values and keeps
	// what it does not know.
	for at, want := range map[string]string{"0/0": `"gone":"g"`, "0/3": `"n":5000000000`, "0/4": `"_unknown":"IgFo"`} {
		if !strings.Contains(rows[at], want) {
			t.Errorf("row %s is %s, want %s in it", at, rows[at], want)
		}
	}
	if got := w.reasons(); len(rows) != 3 || !strings.Contains(got, "the value is a web.Other, but the table is for web.Click") {
		t.Errorf("%d rows, dead letters: %s", len(rows), got)
	}
}

// Framed JSON lands according to its values.
func TestFramedJSONLands(t *testing.T) {
	t.Parallel()
	at := registry.URL(t)
	w := newWorld(t, kafkaserver.Embedded(t))
	s := newSubject(t, at, w.topic+"-value")
	id := s.register(s.name, sr.Schema{Schema: `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object"}`, Type: sr.TypeJSON}).ID
	w.put(t, 0, frame(id, []byte(`{"a":1}`)...), frame(id, []byte(`{"a":1.5,"b":[]}`)...))
	table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, at))
	if err != nil {
		t.Fatal(err)
	}
	w.land(t, table)
	w.have(t, map[int32][]string{0: {`{"a":1}`, `{"_extra":"{\"b\":[]}","a":1.5}`}})
}

// While the registry is unavailable, values with known schemas land, and others wait.
func TestRegistryUnavailable(t *testing.T) {
	t.Parallel()
	behind, err := url.Parse(registry.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		httputil.NewSingleHostReverseProxy(&url.URL{Scheme: behind.Scheme, Host: behind.Host}).ServeHTTP(w, r)
	}))
	t.Cleanup(door.Close)
	address := door.URL + behind.Path
	w := newWorld(t, kafkaserver.Embedded(t))
	s := newSubject(t, behind.String(), w.topic+"-value")
	known, later := s.avro(record(`{"name":"id","type":"string"}`)), s.avro(record(`{"name":"id","type":"string"},{"name":"more","type":"int"}`))
	w.put(t, 0, known(`{"id":"a"}`))
	table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, clientWithin(t, address, 2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	l, stop := w.start(t, table)
	w.landed(t, l)
	away.Store(true)
	third := frame(1<<20, 2, 'x') // of a schema that is not registered
	w.put(t, 0, known(`{"id":"b"}`), third)
	w.put(t, 1, known(`{"id":"c"}`), later(`{"id":"d","more":1}`))
	ends, err := w.producer.Ends(t.Context(), w.topic)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // what comes before what waits
		have, err := l.Applied(t.Context(), w.topic)
		if err != nil {
			return err
		}
		if have[0] != 3 || have[1] < 1 {
			return fmt.Errorf("the table is at %v of %v", have, ends)
		}
		return nil
	})
	away.Store(false)
	w.landed(t, l)
	stop()
	w.have(t, map[int32][]string{0: {`{"id":"a"}`, `{"id":"b"}`}, 1: {`{"id":"c"}`, `{"id":"d","more":1}`}})
	if got := w.reasons(); !strings.Contains(got, "schema 1048576") || strings.Contains(got, ";") {
		t.Errorf("dead letters: %s", got)
	}
}
