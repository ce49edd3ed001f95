package feast

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/serving"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/test/servers/process"
)

//go:embed testdata/client.py
var feastClient string

// backend serves a store that does not change.
type backend struct{ store *online.Store }

func (b backend) Store() online.Reader          { return b.store }
func (backend) Watermarks() *streams.Watermarks { return streams.NewWatermarks() }
func (backend) Ready() error                    { return nil }

// onlineStore serves facts, of which all are known, at noon.
func onlineStore(t *testing.T, groups []*features.Group, facts training.Slice) string {
	t.Helper()
	s := httptest.NewServer(serving.NewFeast(vectors(t, groups, facts), func(h http.Handler) http.Handler { return h }))
	t.Cleanup(s.Close)
	return s.URL
}

// vectors returns a service of the vectors at noon.
func vectors(t *testing.T, groups []*features.Group, facts training.Slice) *serving.Service {
	t.Helper()
	store, err := online.New(groups, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for source, all := range facts {
		err := store.Apply(online.Batch{Topic: all[0].Origin.Topic, After: feed.Position{Next: int64(len(all))},
			Facts: map[string][]features.Fact{source: all}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return serving.New(backend{store}, func() time.Time { return noon })
}

// plain returns a result as JSON has it.
func plain(r exact.Result, kind exact.ResultKind) any {
	switch {
	case kind == exact.TextsResult:
		return append([]string{}, r.Texts...)
	case r.Kind == exact.IntResult:
		return r.Int
	case r.Kind == exact.FloatResult:
		return r.Float
	case r.Kind == exact.TextResult:
		return r.Text
	}
	return nil
}

// expected returns the vectors that a client must be given, computed by features.Evaluate. Those of a
// customer who refuses are those of one without facts.
func expected() map[string]any {
	all := facts()
	vectors := func(customer, sku string, at, known time.Time) map[string]any {
		row := map[string]any{}
		for _, g := range groups() {
			entity := customer
			switch {
			case g.Entity == "sku":
				entity = sku
			case customer == refusing:
				entity = "nobody"
			}
			v := features.Evaluate(g, all, entity, at, known)
			for i, o := range g.Outputs() {
				row[g.Name+"__"+o.Name] = plain(v.Values[i], o.Kind)
			}
		}
		return row
	}
	var rows []map[string]any
	for i := range 60 {
		customer, sku := fmt.Sprintf("c%d", i%6), fmt.Sprint(i%7)
		at := noon.Add(-time.Duration(i*i%170) * time.Hour)
		known := at.Add(time.Duration(i%9) * 20 * time.Hour)
		row := vectors(customer, sku, at, known)
		row["customer_id"], row["sku"], row["event_timestamp"], row["as_known_at"] = customer, sku, at, known
		row["known_then"] = vectors(customer, sku, at, at)["activity__orders_7d"]
		rows = append(rows, row)
	}
	present := vectors("c1", "1", noon, time.Time{})
	return map[string]any{"historical": rows, "online": map[string]any{
		"orders_7d": []any{present["value__orders_7d"]}, "sold_7d": []any{present["stock__sold_7d"]}}}
}

// TestFeastClient: an unmodified Feast client with the generated registry and settings, and with no
// definition of its own, builds training sets and reads vectors, and raises errors of its own classes.
func TestFeastClient(t *testing.T) {
	process.SkipHeavy(t, "Feast")
	home, err := process.InstallDir("feast")
	if err != nil {
		process.SkipOrFail(t, "Feast", err)
	}
	r := Repository{Project: "test", Registry: "registry.db", Online: onlineStore(t, groups(), facts()),
		Offline: serve(t, config(t)).Listener.Addr().String()}
	registry, err := Registry(r.Project, groups())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := r.Settings()
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(expected())
	if err != nil {
		t.Fatal(err)
	}
	runClient(t, home, map[string]string{"client.py": feastClient, "registry.db": string(registry),
		"feature_store.yaml": settings, "expected.json": string(want)})
}

// runClient runs client.py in a folder with these files.
func runClient(t *testing.T, home string, files map[string]string, environment ...string) {
	t.Helper()
	dir := t.TempDir()
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	python := exec.CommandContext(t.Context(), filepath.Join(home, "python", "bin", "python"), "client.py")
	python.Dir, python.Env = dir, append(os.Environ(), environment...)
	var complaints bytes.Buffer // Arrow also writes the errors there that it raises
	python.Stderr = &complaints
	out, err := python.Output()
	if err != nil || strings.TrimSpace(string(out)) != "all right" {
		t.Errorf("%v: %s\n%s", err, out, &complaints)
	}
}
