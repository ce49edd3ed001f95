package external_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/avro"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// fakeRegistry implements as much of a schema registry as a lander needs. It has one subject and
// accepts every schema.
type fakeRegistry struct {
	mu      sync.Mutex
	schemas []string
}

func newFakeRegistry(t *testing.T) (*fakeRegistry, string) {
	t.Helper()
	f := new(fakeRegistry)
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, server.URL
}

// add registers a schema, whose id is its version.
func (f *fakeRegistry) add(schema string) (id int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.schemas = append(f.schemas, schema)
	return len(f.schemas)
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	id := len(f.schemas)
	if text, byID := strings.CutPrefix(r.URL.Path, "/schemas/ids/"); byID {
		if _, err := fmt.Sscan(text, &id); err != nil || id < 1 || id > len(f.schemas) {
			http.Error(w, `{"error_code":40403,"message":"no such schema"}`, http.StatusNotFound)
			return
		}
	} else if !strings.HasSuffix(r.URL.Path, "/versions/latest") {
		http.Error(w, `{"error_code":404,"message":"no such path"}`, http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"subject": "s", "version": id, "id": id, "schema": f.schemas[id-1]})
}

// A newest schema that is incompatible with the table has the same effect during landing and at
// start: values with that schema become dead letters, and the others land.
func TestStartIsAsStrictAsRunning(t *testing.T) {
	t.Parallel()
	const first = `{"name":"v","type":"int"}`
	for name, c := range map[string]struct{ newest, reason string }{
		"int becomes string":           {record(`{"name":"v","type":"string"}`), "which have no common type"},
		"int becomes record":           {record(`{"name":"v","type":{"type":"record","name":"V","fields":[{"name":"x","type":"int"}]}}`), "which have no common type"},
		"int becomes list":             {record(`{"name":"v","type":{"type":"array","items":"int"}}`), "which have no common type"},
		"a name differs by case alone": {record(first + `,{"name":"V","type":"string"}`), "same column name"},
		"a reserved name":              {record(`{"name":"_key","type":"string"}`), "rename the field"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kafkaserver.Embedded(t))
			schemas, url := newFakeRegistry(t)
			old := schemas.add(record(first))
			value := func(id int, schema string, v any) string {
				parsed, err := avro.Parse(schema)
				if err != nil {
					t.Fatal(err)
				}
				b, err := parsed.Encode(v)
				if err != nil {
					t.Fatal(err)
				}
				return frame(id, b...)
			}
			declared := func() declare.Table {
				table, err := external.Registered(t.Context(), w.name, w.topic, external.Subject{}, client(t, url))
				if err != nil {
					t.Fatal(err)
				}
				return table
			}
			good := func(v int) string { return value(old, record(first), map[string]any{"v": v}) }
			w.put(t, 0, good(1))
			l, stop := w.start(t, declared())
			w.landed(t, l)
			newest := schemas.add(c.newest)
			bad := frame(newest, 2, 'x')
			w.put(t, 0, bad, good(2)) // running
			w.landed(t, l)
			stop()
			running := w.reasons()
			l, stop = w.start(t, declared()) // again
			w.put(t, 0, bad, good(3))
			w.landed(t, l)
			stop()
			if !strings.Contains(running, c.reason) || w.reasons() != running {
				t.Errorf("while running: %s\nafter the start: %s", running, w.reasons())
			}
			if len(w.deadLetters) != 2 {
				t.Errorf("dead letters: %v", w.deadLetters)
			}
			w.have(t, map[int32][]string{0: {`{"v":1}`, `{"v":2}`, `{"v":3}`}})
		})
	}
}
