package external_test

import (
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// Headers are a map column if requested: in new tables, in tables that did not have it, and when it
// is dropped and requested again.
func TestHeadersLand(t *testing.T) {
	t.Parallel()
	proto := files(t, map[string]string{"a.proto": `syntax = "proto3"; message A { int64 a = 1; }`})
	md, err := external.Message(t.Context(), filepath.Join(proto, "a.proto"), "A")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		table func(w *world, options ...external.Option) declare.Table
		value func(w *world) string
	}{
		{
			"json", func(w *world, options ...external.Option) declare.Table {
				return external.JSON(w.name, w.topic, false, options...)
			},
			func(*world) string { return `{"a":1}` },
		},
		{
			"protobuf", func(w *world, options ...external.Option) declare.Table {
				table, err := external.Proto(w.name, w.topic, md, options...)
				if err != nil {
					t.Error(err)
				}
				return table
			},
			func(*world) string { return "\x08\x01" },
		},
		{
			"avro", func(w *world, options ...external.Option) declare.Table {
				table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, registry.URL(t)), options...)
				if err != nil {
					t.Error(err)
				}
				return table
			},
			func(w *world) string {
				s := newSubject(t, registry.URL(t), w.topic+"-value")
				return s.avro(record(`{"name":"a","type":"int"}`))(`{"a":1}`)
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kafkaserver.Embedded(t))
			value := c.value(w)
			put := func(headers ...event.Header) {
				t.Helper()
				err := w.producer.Commit(t.Context(), w.topic, fetchtest.Record{Key: []byte("k"), Value: []byte(value), Headers: headers})
				if err != nil {
					t.Fatal(err)
				}
			}
			put(event.Header{Key: "trace", Value: []byte{1, 2}})
			w.land(t, c.table(w)) // without
			put(event.Header{Key: "trace", Value: []byte{1, 2}}, event.Header{Key: "none"}, event.Header{Key: "empty", Value: []byte{}})
			put()
			put(event.Header{Key: "twice", Value: []byte{1}}, event.Header{Key: "once", Value: []byte{2}}, event.Header{Key: "twice", Value: []byte{3}})
			put(event.Header{Key: "\xff", Value: []byte{4}})
			w.land(t, c.table(w, external.Headers()))
			put(event.Header{Key: "trace", Value: []byte{5}})
			w.land(t, c.table(w)) // no more
			w.have(t, map[int32][]string{0: {
				`{"a":1}`,
				`{"_headers":[{"key":"trace","value":"AQI="},{"key":"none","value":null},{"key":"empty","value":""}],"a":1}`,
				`{"_headers":[],"a":1}`,
				`{"_headers":[{"key":"once","value":"Ag=="},{"key":"twice","value":"Aw=="}],"a":1}`,
				`{"_headers":[{"key":"` + "\uFFFD" + `","value":"BA=="}],"a":1}`,
				`{"a":1}`,
			}})
			if len(w.deadLetters) != 0 {
				t.Errorf("dead letters: %v", w.deadLetters)
			}
		})
	}
}
