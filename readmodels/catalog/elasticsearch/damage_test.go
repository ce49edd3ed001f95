package elasticsearch

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// TestDamage checks that changes by others to the view's index are detected, reported and repaired
// from the log.
func TestDamage(t *testing.T) {
	t.Parallel()
	p := newPlace(t, &server)
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	l.Write(t, indextest.Events(t, l, 100, 400)...)
	x := openAt(t, p)
	t.Cleanup(func() { indextest.Close(t, x) })
	v, r, stop := indextest.Feed(t, x, cfg)
	streamstest.CatchUp(t, r)
	indextest.Repaired(t, v, l)
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
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.aliasURL()+"/_doc/"+id+"?refresh=true",
			bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err := answer.Body.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || answer.StatusCode > 299 {
			t.Fatalf("%v, %s: %s", err, answer.Status, body)
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
	check := func(t *testing.T, v *catalog.View, r *streams.Runtime) {
		t.Helper()
		queries := catalog.NewQueries(v)
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
		indextest.Repaired(t, v, l)
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
			v, r, stop := indextest.Feed(t, x, cfg)
			check(t, v, r)
			stop()
		})
	}
}
