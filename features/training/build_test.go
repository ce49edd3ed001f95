package training

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
)

// example is a row of the spines that tests write. It has types that are only copied, too.
type example struct {
	Label   *int64                `parquet:"label,optional"`
	Entity  string                `parquet:"customer_id,dict"`
	At      time.Time             `parquet:"event_time,timestamp(microsecond)"`
	Known   *time.Time            `parquet:"seen,optional,timestamp(microsecond)"`
	Tags    []string              `parquet:"tags,list"`
	Weights map[string]float64    `parquet:"weights"`
	Nested  struct{ A, B *int32 } `parquet:"nested"`
	Raw     []byte                `parquet:"raw"`
}

// writeSpine writes a spine with several row groups.
func writeSpine[T any](t testing.TB, rows []T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "spine.parquet")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := parquet.NewGenericWriter[T](f, parquet.PageBufferSize(512))
	for chunk := range slices.Chunk(rows, 70) {
		if _, err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// readSet reads a file: the names of its leaves, and its rows as JSON-like values.
func readSet(t testing.TB, path string) (columns []string, rows []map[string]any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range file.Schema().Fields() {
		columns = append(columns, f.Name())
	}
	for _, group := range file.RowGroups() {
		begin := len(rows)
		for range group.NumRows() {
			rows = append(rows, map[string]any{})
		}
		for i, chunk := range group.ColumnChunks() {
			name := strings.Join(file.Schema().Columns()[i], ".")
			r := &leafReader{leaf: leaf{name: name}, pages: chunk.Pages()}
			at := begin - 1
			buffer := make([]parquet.Value, 100)
			for {
				n, err := r.read(buffer)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range buffer[:n] {
					if v.RepetitionLevel() == 0 {
						at++
					}
					text := v.Clone().String()
					if v.IsNull() {
						text = fmt.Sprint("null at level ", v.DefinitionLevel())
					}
					if had, ok := rows[at][name]; ok {
						text = fmt.Sprint(had, ", ", text)
					}
					rows[at][name] = text
				}
			}
			if err := r.close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return columns, rows
}

// shown is how readSet shows a result.
func shown(r exact.Result, kind exact.ResultKind) string {
	switch {
	case kind == exact.TextsResult && len(r.Texts) == 0, r.Kind == exact.NullResult:
		return "null at level 0"
	case kind == exact.TextsResult:
		return strings.Join(r.Texts, ", ")
	case kind == exact.TextResult:
		return r.Text
	case kind == exact.FloatResult:
		return parquet.DoubleValue(r.Float).String()
	}
	return fmt.Sprint(r.Int)
}

// randomFacts returns facts of everyOutput's sources about entities c0 to c9.
func randomFacts(n int, seed uint64) Slice {
	r := rand.New(rand.NewPCG(seed, 1))
	s := Slice{}
	for i := range n {
		at := tick(r.IntN(2000))
		f := features.Fact{
			Entity: fmt.Sprint("c", r.IntN(10)), Key: fmt.Sprint(i), At: at,
			Known: at.Add(time.Duration(r.IntN(20)) * time.Microsecond), Origin: features.Origin{Offset: int64(i)},
		}
		if i%4 == 0 {
			f.Values = []exact.Value{exact.TextValue(fmt.Sprint("/", r.IntN(5)))}
			s["visits"] = append(s["visits"], f)
			continue
		}
		f.Values = []exact.Value{exact.IntValue(exact.FromMoney(int64(r.IntN(1000)), int32(r.IntN(999_999_999)))),
			exact.IntValue(exact.FromInt64(int64(r.IntN(9)))), exact.TextValue([]string{"GB", "FR"}[r.IntN(2)])}
		if r.IntN(9) == 0 {
			f.Values[0] = exact.Value{}
		}
		s["orders"] = append(s["orders"], f)
		if r.IntN(7) == 0 { // corrected or retracted later
			f.Known, f.Retracted = f.Known.Add(30*time.Microsecond), r.IntN(2) == 0
			f.Origin.Index = 1
			s["orders"] = append(s["orders"], f)
		}
	}
	return s
}

func randomSpine(n int, seed uint64) []example {
	r := rand.New(rand.NewPCG(seed, 2))
	rows := make([]example, n)
	for i := range rows {
		label, known := int64(i), tick(r.IntN(2100))
		rows[i] = example{Label: &label, Entity: fmt.Sprint("c", r.IntN(12)), At: tick(r.IntN(2100)), Known: &known,
			Weights: map[string]float64{"w": r.Float64()}, Raw: []byte{byte(i)}}
		for j := range r.IntN(4) {
			rows[i].Tags = append(rows[i].Tags, fmt.Sprint(j))
		}
		if i%5 == 0 {
			rows[i].Label, rows[i].Known = nil, nil
			a := int32(i)
			rows[i].Nested.A = &a
		}
	}
	return rows
}

func testConfig(t testing.TB, spine string, facts Facts) Config {
	return Config{Spine: spine, At: "event_time", Groups: []*features.Group{everyOutput()},
		Facts: facts, Out: filepath.Join(t.TempDir(), "set.parquet"), TempDir: t.TempDir(), Workers: 2, Program: "test"}
}

// TestRefuses: rows of an entity that refuses are those of one without facts, its facts are not used,
// and the manifest repeats that.
func TestRefuses(t *testing.T) {
	t.Parallel()
	facts, rows := randomFacts(1000, 3), randomSpine(200, 3)
	c := testConfig(t, writeSpine(t, rows), facts)
	everybody, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	g := c.Groups[0]
	refuses := func(entity string, ids ...string) bool {
		return entity == g.Entity && (slices.Contains(ids, "c2") || slices.Contains(ids, "c7"))
	}
	c.Refuses, c.Consents, c.Out = refuses, map[int32]int64{0: 5}, c.Out+"2"
	m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	_, got := readSet(t, c.Out)
	for i, r := range rows {
		entity := r.Entity
		if refuses(g.Entity, entity) {
			entity = "nobody"
		}
		want := features.Evaluate(g, facts, entity, r.At, r.At)
		for n, o := range g.Outputs() {
			if text := shown(want.Values[n], o.Kind); o.Kind != exact.TextsResult && got[i][o.Name] != text {
				t.Fatalf("row %d of %s: %s is %q, want %q", i, r.Entity, o.Name, got[i][o.Name], text)
			}
		}
		if got[i]["customer_id"] != r.Entity {
			t.Fatalf("row %d: the entity is %q, want %q", i, got[i]["customer_id"], r.Entity)
		}
	}
	for source, used := range m.Facts.Used {
		if used >= everybody.Facts.Used[source] {
			t.Errorf("%s: %d facts are used, of %d", source, used, everybody.Facts.Used[source])
		}
	}
	again := Config{Groups: c.Groups, Facts: facts, Out: c.Out + "3", TempDir: c.TempDir, Program: "test"}
	if err := m.Apply(&again); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(again.Consents, c.Consents) {
		t.Errorf("the manifest has the consents up to %v, want %v", again.Consents, c.Consents)
	}
	if _, err := Repeat(t.Context(), m, again); !errors.Is(err, ErrManifest) {
		t.Errorf("repeated without the refusals: %v, want ErrManifest", err)
	}
	again.Refuses = refuses
	if _, err := Repeat(t.Context(), m, again); err != nil {
		t.Error(err)
	}
}

// TestBuild: the columns of the spine are unchanged and in order, and the others equal Evaluate, in
// each mode of known times and with any number of ranges.
func TestBuild(t *testing.T) {
	t.Parallel()
	facts, rows := randomFacts(3000, 1), randomSpine(300, 1)
	spine := writeSpine(t, rows)
	spineColumns, spineRows := readSet(t, spine)
	for _, known := range []string{KnownAt, KnownLatest, "seen"} {
		t.Run(known, func(t *testing.T) {
			t.Parallel()
			c := testConfig(t, spine, facts)
			c.Known = known
			if known == "seen" {
				c.Workers, c.Lag = 7, 3*time.Microsecond
			}
			m, err := Build(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			columns, got := readSet(t, c.Out)
			if want := append(slices.Clone(spineColumns), m.Output.Columns...); !slices.Equal(columns, want) {
				t.Errorf("columns %v, want %v", columns, want)
			}
			if len(got) != len(rows) {
				t.Fatalf("%d rows, want %d", len(got), len(rows))
			}
			g := c.Groups[0]
			for i, r := range rows {
				for name, want := range spineRows[i] {
					if got[i][name] != want {
						t.Fatalf("row %d: the copy of %s is %q, want %q", i, name, got[i][name], want)
					}
				}
				at := r.At.Add(-c.Lag)
				k := at
				switch {
				case known == KnownLatest:
					k = time.Time{}
				case known == "seen" && r.Known != nil:
					k = *r.Known
				}
				want := features.Evaluate(g, facts, r.Entity, at, k)
				for n, o := range g.Outputs() {
					name := o.Name
					if o.Kind == exact.TextsResult {
						name += ".list.element"
					}
					if got[i][name] != shown(want.Values[n], o.Kind) {
						t.Fatalf("row %d: %s is %q, want %q", i, o.Name, got[i][name], shown(want.Values[n], o.Kind))
					}
				}
			}
			if left, err := os.ReadDir(c.TempDir); err != nil || len(left) > 0 {
				t.Errorf("temporary files are left: %v %v", left, err)
			}
		})
	}
}

// TestRepeat: a run from the manifest gives the same bytes, with other resources and after more facts
// were recorded, and says what differs if it cannot.
func TestRepeat(t *testing.T) {
	t.Parallel()
	facts, spine := randomFacts(2000, 3), writeSpine(t, randomSpine(200, 3))
	c := testConfig(t, spine, facts)
	c.Known, c.Features, c.FullNames, c.Lag = KnownLatest, []string{"f0", "f3_lifetime", "f26"}, true, time.Microsecond
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	// More facts, which everything that is known now includes.
	more := Slice{}
	for source, all := range facts {
		more[source] = slices.Clone(all)
		for i, f := range all {
			f.Key, f.Origin.Offset = fmt.Sprint("more", i), 1_000_000+int64(i)
			more[source] = append(more[source], f)
		}
	}
	m, err := ReadManifest(ManifestPath(c.Out))
	if err != nil {
		t.Fatal(err)
	}
	again := func(t *testing.T, facts Facts, change func(*Manifest, *Config)) (Config, error) {
		c := Config{Groups: []*features.Group{everyOutput()}, Facts: facts, TempDir: t.TempDir(),
			Out: filepath.Join(t.TempDir(), "again.parquet"), Workers: 5}
		m := m
		change(&m, &c)
		if err := m.Apply(&c); err != nil {
			return c, err
		}
		_, err := Repeat(t.Context(), m, c)
		return c, err
	}
	for name, facts := range map[string]Slice{"same facts": facts, "more facts": more} {
		t.Run(name, func(t *testing.T) {
			c, err := again(t, facts, func(*Manifest, *Config) {})
			if err != nil {
				t.Fatal(err)
			}
			second, err := os.ReadFile(c.Out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first, second) {
				t.Errorf("%d bytes differ from the first run's %d", len(second), len(first))
			}
		})
	}
	lost := Slice{"orders": facts["orders"][10:], "visits": facts["visits"]}
	changed := everyOutput()
	changed.Features[0].Windows = changed.Features[0].Windows[1:]
	for name, test := range map[string]struct {
		facts  Slice
		change func(*Manifest, *Config)
		want   string
	}{
		"facts are gone":    {lost, func(*Manifest, *Config) {}, "source orders has"},
		"another spine":     {facts, func(_ *Manifest, c *Config) { c.Spine = writeSpine(t, randomSpine(200, 4)) }, "SHA-256"},
		"no group":          {facts, func(_ *Manifest, c *Config) { c.Groups = nil }, "no group every"},
		"another group":     {facts, func(_ *Manifest, c *Config) { c.Groups = []*features.Group{changed} }, "digest"},
		"another parameter": {facts, func(m *Manifest, _ *Config) { m.Parameters.Known = KnownAt }, "the output differs"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := again(t, test.facts, test.change)
			if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %q", err, test.want)
			}
			if left, err := os.ReadDir(filepath.Dir(c.Out)); err != nil || len(left) > 0 {
				t.Errorf("files of a run that failed: %v %v", left, err)
			}
		})
	}
}

// TestSpills: the same with facts that can be read in their order only, and with little memory, which
// needs more ranges.
func TestSpills(t *testing.T) {
	t.Parallel()
	facts, spine := randomFacts(3000, 5), writeSpine(t, randomSpine(300, 5))
	c := testConfig(t, spine, facts)
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	c = testConfig(t, spine, inOrder{facts})
	c.Memory = minMemory
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the set differs from the one that was built in memory")
	}
}

// inOrder is Facts that claim to be many, and that can be read in their order only.
type inOrder struct{ Slice }

func (inOrder) Count(context.Context, Request) (int64, error) { return 1_000_000, nil }

func (inOrder) Read(context.Context, Request, func(*Batch) error) error {
	return errors.New("ranges were not split")
}

func (s inOrder) split(_ context.Context, dir string, requests []dividedRequest,
	_ func(n, of int64)) (*spilled, error) {
	if n := requests[0].division.ranges(); n < 8 && requests[0].Source.Name != persons.Source.Name {
		return nil, fmt.Errorf("%d ranges do not bound memory", n)
	}
	to, err := newSpilled(dir, requests)
	if err != nil {
		return nil, err
	}
	for _, r := range requests {
		for i := range s.Slice[r.Source.Name] {
			if f := &s.Slice[r.Source.Name][i]; r.wants(f) {
				if err := to.add(r.Request, f); err != nil {
					return nil, err
				}
			}
		}
	}
	return to, nil
}

// TestConfigErrors: what is wrong is named, and nothing is written.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	spine := writeSpine(t, randomSpine(10, 1))
	other := everyOutput()
	other.Name, other.Entity = "other", "sku"
	product := productGroup()
	twin := everyOutput()
	twin.Name = "twin"
	key := func(column string) func(*Config) {
		return func(c *Config) { c.Keys = map[string]string{"customer_id": column} }
	}
	type odd struct {
		Key    uint32    `parquet:"key"`
		Day    int32     `parquet:"day,date"`
		F0     float64   `parquet:"f0_lifetime"`
		Entity string    `parquet:"customer_id"`
		At     time.Time `parquet:"event_time,timestamp(millisecond)"`
	}
	oddSpine := writeSpine(t, []odd{{At: base}})
	type early struct {
		Entity *string `parquet:"customer_id,optional"`
		At     *int64  `parquet:"event_time,optional,timestamp(microsecond)"`
	}
	a, far, fine := "a", int64(1)<<62, base.UnixMicro()
	notParquet := filepath.Join(t.TempDir(), "spine.csv")
	if err := os.WriteFile(notParquet, []byte("customer_id,event_time\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"missing key":      {key("sku"), "key of customer_id: there is no column sku; the spine has label, customer_id, event_time"},
		"nested key":       {key("tags"), "key of customer_id: column tags"},
		"key of floats":    {func(c *Config) { c.Spine = oddSpine; key("f0_lifetime")(c) }, "column f0_lifetime"},
		"unsigned key":     {func(c *Config) { c.Spine = oddSpine; key("key")(c) }, "column key"},
		"unknown entity":   {func(c *Config) { c.Keys = map[string]string{"sku": "tags"} }, "key sku=tags: the groups describe customer_id, not sku"},
		"no second key":    {func(c *Config) { c.Groups = append(c.Groups, product) }, "key of sku: there is no column sku; the spine has"},
		"at is a date":     {func(c *Config) { c.Spine, c.At = oddSpine, "day" }, "column day"},
		"at is a text":     {func(c *Config) { c.At = "customer_id" }, "column customer_id"},
		"known is no time": {func(c *Config) { c.Known = "label" }, "column label"},
		"no such known":    {func(c *Config) { c.Known = "now" }, "known: there is no column now"},
		"null key":         {func(c *Config) { c.Spine = writeSpine(t, []early{{&a, &fine}, {nil, &fine}}) }, "row 1: column customer_id is null"},
		"null time":        {func(c *Config) { c.Spine = writeSpine(t, []early{{&a, nil}}) }, "row 0: column event_time is null"},
		"far time":         {func(c *Config) { c.Spine = writeSpine(t, []early{{&a, &far}}) }, "row 0: column event_time"},
		"no such feature":  {func(c *Config) { c.Features = []string{"f0", "clicks"} }, `"clicks"`},
		"name is taken":    {func(c *Config) { c.Spine = oddSpine }, "column f0_lifetime"},
		"shared source":    {func(c *Config) { c.Groups = append(c.Groups, other) }, "groups every and other have the source orders, but describe different entities"},
		"same outputs":     {func(c *Config) { c.Groups = append(c.Groups, twin) }, "full names"},
		"same group":       {func(c *Config) { c.Groups = append(c.Groups, everyOutput()) }, "named twice"},
		"negative lag":     {func(c *Config) { c.Lag = -1 }, "lag"},
		"little memory":    {func(c *Config) { c.Memory = 1 }, "memory"},
		"too many facts":   {func(c *Config) { c.Facts, c.Memory = billions{}, minMemory }, "MiB are enough"},
		"no file":          {func(c *Config) { c.Spine = "nowhere.parquet" }, "nowhere.parquet"},
		"not Parquet":      {func(c *Config) { c.Spine = notParquet }, "not a readable Parquet file"},
		"a folder":         {func(c *Config) { c.Spine = t.TempDir() }, "regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig(t, spine, randomFacts(10, 1))
			test.change(&c)
			_, err := Build(t.Context(), c)
			if err == nil || !errors.Is(err, ErrConfig) && !errors.Is(err, ErrSpine) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one about %q", err, test.want)
			}
			if left, err := os.ReadDir(filepath.Dir(c.Out)); err != nil || len(left) > 0 {
				t.Errorf("files of a run that failed: %v %v", left, err)
			}
		})
	}
}

// TestOutputKeepsSpine: an output that would replace the spine is refused.
func TestOutputKeepsSpine(t *testing.T) {
	t.Parallel()
	spine := writeSpine(t, randomSpine(10, 1))
	before, err := os.ReadFile(spine)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "set.parquet")
	if err := errors.Join(os.Link(spine, filepath.Join(dir, "copy.parquet")), os.Link(spine, ManifestPath(out))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{spine, filepath.Join(dir, "copy.parquet"), out} {
		c := testConfig(t, spine, randomFacts(10, 1))
		c.Out = path
		if _, err := Build(t.Context(), c); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "is the spine") {
			t.Errorf("--out %s: %v", path, err)
		}
	}
	if after, err := os.ReadFile(spine); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the spine has %d bytes, %v; it had %d", len(after), err, len(before))
	}
}

// billions are too many facts.
type billions struct{ Slice }

func (billions) Count(context.Context, Request) (int64, error) { return 1 << 40, nil }

// TestCancelled: a run that is cancelled leaves nothing.
func TestCancelled(t *testing.T) {
	t.Parallel()
	c := testConfig(t, writeSpine(t, randomSpine(300, 1)), randomFacts(1000, 1))
	for _, stage := range []string{"reading the spine", "joining facts", "writing"} {
		ctx, cancel := context.WithCancel(t.Context())
		c.Progress = func(at string, _, _ int64) {
			if at == stage {
				cancel()
			}
		}
		_, err := Build(ctx, c)
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while %s: error %v", stage, err)
		}
		for _, dir := range []string{filepath.Dir(c.Out), c.TempDir} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("cancelled while %s: %v %v is left", stage, left, err)
			}
		}
	}
}

// TestManifest: a manifest is read as it was written, and a damaged one is refused.
// unreadable is Facts that cannot be read.
type unreadable struct{ Slice }

func (unreadable) Read(context.Context, Request, func(*Batch) error) error {
	return errors.New("unreadable")
}

// TestInformed: the manifest says how many rows know a fact, and a spine that is to be kept replaces an
// earlier one only if the set is complete.
func TestInformed(t *testing.T) {
	t.Parallel()
	minute := func(n int) time.Time { return base.Add(time.Duration(n) * time.Minute) }
	order := features.Fact{Entity: "a", Key: "k", At: minute(1), Known: minute(5), Values: make([]exact.Value, 3)}
	facts := Slice{"orders": []features.Fact{order}}
	rows := []example{
		{Entity: "a", At: minute(0)}, {Entity: "a", At: minute(2)}, {Entity: "a", At: minute(6)}, {Entity: "b", At: minute(6)},
	}
	kept := filepath.Join(t.TempDir(), "kept.parquet")
	if err := os.WriteFile(kept, []byte("earlier"), 0o600); err != nil {
		t.Fatal(err)
	}
	for known, want := range map[string]int64{KnownAt: 1, KnownLatest: 2} {
		c := testConfig(t, writeSpine(t, rows), facts)
		c.Known = known
		m, err := Build(t.Context(), c)
		if err != nil || m.Output.Informed["customer_id"] != want {
			t.Errorf("known %s: %v rows know a fact, want %d: %v", known, m.Output.Informed, want, err)
		}
	}
	c := testConfig(t, writeSpine(t, rows), facts)
	c.KeepSpine, c.Facts = kept, unreadable{facts}
	if _, err := Build(t.Context(), c); err == nil {
		t.Error("a set of facts that cannot be read was built")
	}
	if text, err := os.ReadFile(kept); string(text) != "earlier" {
		t.Errorf("after an error, the spine of an earlier set is %q: %v", text, err)
	}
	c.Facts = facts
	m, err := Build(t.Context(), c)
	if err != nil || m.Spine.Path != kept {
		t.Errorf("the spine is %s, want %s: %v", m.Spine.Path, kept, err)
	}
	if _, err := os.Stat(c.Spine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spine has two names: %v", err)
	}
	if _, err := Repeat(t.Context(), m, Config{Groups: c.Groups, Facts: facts, Spine: kept, Keys: m.Parameters.Keys,
		At: m.Parameters.At, Known: m.Parameters.Known, Positions: m.Facts.Positions, Out: c.Out, TempDir: t.TempDir()}); err != nil {
		t.Errorf("the set is not repeated from the spine that was kept: %v", err)
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	c := testConfig(t, writeSpine(t, randomSpine(5, 1)), randomFacts(10, 1))
	c.From = "slice"
	m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadManifest(ManifestPath(c.Out))
	if err != nil || !reflect.DeepEqual(read, m) {
		t.Errorf("read %+v: %v, want %+v", read, err, m)
	}
	for name, change := range map[string]func(*Manifest){
		"format":    func(m *Manifest) { m.Format = 2 },
		"positions": func(m *Manifest) { m.Facts.Positions = nil },
		"groups":    func(m *Manifest) { m.Groups = nil },
	} {
		bad := m
		change(&bad)
		text, err := json.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeManifest(bytes.NewReader(text)); !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestDamagedManifests: what is wrong with a manifest is said in its own words.
func TestDamagedManifests(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "set.parquet.manifest.json")
	for text, want := range map[string]string{
		"":                              "it is empty",
		`{"format": 1, "spine": {`:      "the JSON ends too early",
		"{\n\"format\" 1}":              "line 2, column 10: not JSON: ",
		`{"format": "1"}`:               "format: want a whole number of at most 64 bits, got a text",
		`{"spine": {"rows": "many"}}`:   "spine.rows: want a whole number of at most 64 bits, got a text",
		`{"groups": {"name": "a"}}`:     "groups: want a list, got an object",
		`{"parameters": {"atx": ""}}`:   `unknown field "atx"`,
		`{"facts": {"positions": [1]}}`: "facts.positions: want an object, got a list",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadManifest(path)
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want one about %s that names the file", text, err, want)
		}
	}
	m := Manifest{Parameters: Parameters{Lag: "soon"}}
	if err := m.Apply(&Config{}); err == nil || !strings.Contains(err.Error(), "parameters.lag: want a duration such as") {
		t.Errorf("lag: error %v", err)
	}
}
