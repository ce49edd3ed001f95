package catalog

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// repaired waits until the view holds what the events make, and reports no fault.
func repaired(t *testing.T, v *View, l *streamstest.Log) {
	t.Helper()
	want, err := ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the view is whole and has no faults", func() bool {
		got, err := v.Digest(t.Context())
		return err == nil && maps.Equal(got.Streams, want.Streams) && !v.Faults().Any()
	})
}

// fed runs a view on an index until stop is called.
func fed(t *testing.T, x Index, cfg kafka.Config) (v *View, r *streams.Runtime, stop func()) {
	t.Helper()
	v = New(x, quiet)
	r = v.Runtime(cfg, nil, quiet)
	return v, r, streamstest.Start(t, r)
}

// A journal that is damaged while the view runs takes nothing from it, and one that is damaged at the start is
// reported, set aside, and completed from the log.
func TestViewOnADamagedJournal(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	l.Write(t, happenings(t, l, 200, 600)...)
	for name, damage := range map[string]func(b []byte) []byte{
		"deleted":            func([]byte) []byte { return nil },
		"empty":              func([]byte) []byte { return []byte{} },
		"truncated":          func(b []byte) []byte { return b[:len(b)*2/3] },
		"zeroes":             func(b []byte) []byte { return make([]byte, len(b)) },
		"zeroes at the end":  func(b []byte) []byte { return append(b[:len(b)/2:len(b)/2], make([]byte, len(b)/2)...) },
		"a flipped bit":      func(b []byte) []byte { b[len(b)/3] ^= 4; return b },
		"a flipped length":   func(b []byte) []byte { b[0] ^= 0x80; return b },
		"garbage":            func([]byte) []byte { return []byte("garbage, and more of it") },
		"garbage at the end": func(b []byte) []byte { return append(b, "garbage, and more of it"...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, journalName)
			x, err := OpenBleve(dir, quiet)
			if err != nil {
				t.Fatal(err)
			}
			v, r, stop := fed(t, x, cfg)
			streamstest.CatchUp(t, r)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b = damage(b); b == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			repaired(t, v, l) // it is not read while the view runs
			stop()
			closed(t, x)

			if x, err = OpenBleve(dir, quiet); err != nil {
				t.Fatal(err)
			}
			v = New(x, quiet)
			// A new journal begins empty, and what stands behind the end is written over.
			unseen := name == "deleted" || name == "empty" || name == "garbage at the end"
			if !unseen && len(v.Faults().List()) != 1 {
				t.Errorf("%d faults are reported, want the journal", len(v.Faults().List()))
			}
			r = v.Runtime(cfg, nil, quiet)
			stop = streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			repaired(t, v, l)
			stop()
			closed(t, x)
		})
	}
}

// What somebody else writes into the view's index in Elasticsearch is found, reported and replaced from the log.
func TestDamageInElasticsearch(t *testing.T) {
	t.Parallel()
	p := inElasticsearch(t, &server)
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	l.Write(t, happenings(t, l, 100, 400)...)
	x := openAt(t, p)
	t.Cleanup(func() { closed(t, x) })
	v, r, stop := fed(t, x, cfg)
	streamstest.CatchUp(t, r)
	repaired(t, v, l)
	var sku string
	for sku = range l.Versions {
		break
	}
	put := func(t *testing.T, id string, document map[string]any) {
		t.Helper()
		b, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.aliasURL()+"/_doc/"+id+"?refresh=true", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(answer.Body)
		if err := answer.Body.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || answer.StatusCode > 299 {
			t.Fatalf("%v, %s: %s", err, answer.Status, said)
		}
	}
	product := func(b string) map[string]any {
		return map[string]any{fieldSKU: sku, fieldProduct: base64.StdEncoding.EncodeToString([]byte(b))}
	}
	positions := map[string]any{}
	at := func(document any) func(*testing.T) {
		return func(t *testing.T) { put(t, positionsID(event.Product.Topic), map[string]any{fieldPositions: document}) }
	}
	damages := map[string]func(t *testing.T){
		"a product of garbage":            func(t *testing.T) { put(t, sku, product("\xff\xff\xff")) },
		"a product of zeroes":             func(t *testing.T) { put(t, sku, product("\x00\x00\x00")) },
		"an empty product":                func(t *testing.T) { put(t, sku, product("")) },
		"a product without content":       func(t *testing.T) { put(t, sku, map[string]any{fieldSKU: sku}) },
		"another product's":               func(t *testing.T) { put(t, sku, product("\x0a\x01x\x20\x01")) },
		"a position that is not a number": at(map[string]any{"0": "abc"}),
		"a position far ahead":            at(map[string]any{"0": "99999999 0.1 0"}),
		"a position of no partition":      at(map[string]any{"x": "1 0.1 0"}),
		"positions of another type":       at(map[string]any{"0": 7}),
		"no positions":                    at(positions),
	}
	check := func(t *testing.T, v *View, r *streams.Runtime) {
		t.Helper()
		queries := NewQueries(v)
		polltest.Until(t, "the product is served", func() bool {
			answer, err := queries.GetProduct(t.Context(), connect.NewRequest(&catalogv1.GetProductRequest{Sku: sku}))
			if err != nil && connect.CodeOf(err) != connect.CodeUnavailable {
				t.Errorf("a query is answered with %v", err)
			}
			return err == nil && answer.Msg.Product.Version == l.Versions[sku]
		})
		if err := v.Inspect(t.Context()); err != nil {
			t.Log("inspection:", err)
		}
		repaired(t, v, l)
		streamstest.CatchUp(t, r)
	}
	for name, damage := range damages {
		t.Run(name+" while it runs", func(t *testing.T) {
			damage(t)
			check(t, v, r)
		})
	}
	stop()
	for name, damage := range damages {
		t.Run(name+" before it starts", func(t *testing.T) {
			damage(t)
			v, r, stop := fed(t, x, cfg)
			check(t, v, r)
			stop()
		})
	}
}
