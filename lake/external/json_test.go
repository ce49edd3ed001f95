package external_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/millrace/millrace/internal/polltest"
	reg "github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/landing"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// Objects land, and the table's columns grow with them. Values that are not objects become dead
// letters.
func TestJSONLands(t *testing.T) {
	t.Parallel()
	brokers.Each(t, func(t *testing.T, brokers string) {
		w := newWorld(t, brokers)
		table := external.JSON(w.name, w.topic, true)
		w.put(t, 0, `{"a":1,"at":"2026-11-25T10:00:00Z"}`, `[1]`, `{"a":2,"b":{"c":["x"]}}`)
		l, stop := w.start(t, table)
		w.landed(t, l)
		w.put(t, 0, `{"a":1.5}`, `{"a":"x","b":{"c":["y"],"d":null,"e":true},"f":{}}`, `{`)
		w.put(t, 1, `{"b":{"c":[],"e":false}}`)
		w.landed(t, l)
		stop()
		w.put(t, 1, `{"a":3,"late":[{"n":1}]}`) // to landers that learn from the table what was before
		w.land(t, external.JSON(w.name, w.topic, true))
		w.have(t, map[int32][]string{
			0: {`{"a":1,"at":"2026-11-25T10:00:00Z"}`, `{"a":2,"b":{"c":["x"]}}`, `{"a_double":1.5}`, `{"_extra":"{\"f\":{}}","a_json":"\"x\"","b":{"c":["y"],"e":true}}`},
			1: {`{"b":{"c":[],"e":false}}`, `{"a":3,"late":[{"n":1}]}`},
		})
		if got, want := w.reasons(), "the value is JSON, but not an object; the value is not JSON: unexpected end of JSON input"; got != want {
			t.Errorf("dead letters: %s, want %s", got, want)
		}
	})
}

// These variables make this binary a lander instead of running tests: where to land, and when to
// kill itself.
const (
	childPlace = "MILLRACE_TEST_FOREIGN"
	childKill  = "MILLRACE_TEST_FOREIGN_KILL"
)

// childConfig is where a child lands, and from where: JSON, or values with schemas of a registry.
type childConfig struct{ Brokers, Topic, Warehouse, Catalog, Registry string }

// The moments at which a child is killed, as its table sees them.
const (
	killAppend = "the first record is about to become a row"
	killGrow   = "columns are about to be committed"
	killGrown  = "columns are committed, no row is"
	killAfter  = "rows are appended to the new columns"
)

func childLands(where string) error {
	var at childConfig
	if err := json.Unmarshal([]byte(where), &at); err != nil {
		return err
	}
	moment, nth, _ := strings.Cut(os.Getenv(childKill), "@")
	left, err := strconv.ParseInt(nth, 10, 64)
	if err != nil {
		return err
	}
	name := lake.Name{"web", "things"}
	table := external.JSON(name, at.Topic, false)
	if at.Registry != "" {
		schemas, err := reg.NewClient(reg.Config{URL: at.Registry, Logger: quiet})
		if err != nil {
			return err
		}
		if table, err = external.Registered(context.Background(), name, at.Topic, external.Subject{}, schemas); err != nil {
			return err
		}
	}
	table.Rows = killing(table.Rows, moment, left)
	l, err := lake.Open(context.Background(), lake.Config{Warehouse: at.Warehouse, Catalog: at.Catalog, Tables: []declare.Table{table}, Logger: quiet})
	if err != nil {
		return err
	}
	return landing.Run(context.Background(), l, landing.Config{Brokers: []string{at.Brokers}, Instance: childInstance, WriteDeadLetters: func(_ context.Context, p []landing.DeadLetter) error { return p[0].Reason }})
}

type rowsFunc = func(*columnar.Columns, *reg.Decoder) (declare.Rows, error)

// killing returns rows that kill the process.
func killing(rows rowsFunc, moment string, nth int64) rowsFunc {
	var left, grown atomic.Int64
	left.Store(nth)
	at := func(m string) {
		if m == moment && left.Add(-1) <= 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	return func(to *columnar.Columns, values *reg.Decoder) (declare.Rows, error) {
		if grown.Load() > 0 {
			at(killGrown)
		}
		r, err := rows(to, values)
		return &killer{r.(declare.Grower), at, &grown}, err
	}
}

type killer struct {
	declare.Grower
	at    func(string)
	grown *atomic.Int64
}

func (k *killer) Append(ctx context.Context, r declare.Record) (declare.Appended, error) {
	k.at(killAppend)
	a, err := k.Grower.Append(ctx, r)
	if err == nil && k.grown.Load() > 0 {
		k.at(killAfter)
	}
	return a, err
}

func (k *killer) Grow(ctx context.Context, have []columnar.Field, records iter.Seq[declare.Record]) ([]columnar.Field, error) {
	k.grown.Add(1)
	k.at(killGrow)
	return k.Grower.Grow(ctx, have, records)
}

// childInstance is the name of a child's landers, and of those that replace them: a group does not wait
// until the session of a member ends if that member returns.
const childInstance = "child"

// startChild starts a lander in its own process, which kills itself. died waits for that.
func (w *world) startChild(t *testing.T, registry, moment, nth string) (died func()) {
	t.Helper()
	where, err := json.Marshal(childConfig{w.brokers, w.topic, w.config.Warehouse, w.config.Catalog, registry})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childPlace+"="+string(where), childKill+"="+moment+"@"+nth)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	w.instance = childInstance
	return func() {
		t.Helper()
		err := cmd.Wait()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("the child ended with %v in place of being killed", err)
		}
	}
}

// A lander that is killed while the table grows leaves a table that the next one completes: each
// record once, with all of its content.
func TestKilledWhileGrowing(t *testing.T) {
	t.Parallel()
	embedded := kafkaserver.Embedded(t)
	for _, moment := range []string{killAppend, killGrow, killGrown, killAfter} {
		for _, nth := range []string{"1", "2"} {
			t.Run(moment+"/"+nth, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, embedded)
				want := map[int32][]string{}
				put := func(from, to int) {
					for i := from; i < to; i++ {
						value := fmt.Sprintf(`{"a":%d,"c%d":%d}`, i, i/10, i)
						w.put(t, int32(i%2), value)
						want[int32(i%2)] = append(want[int32(i%2)], value)
					}
				}
				put(0, 20)
				died := w.startChild(t, "", moment, nth)
				if nth == "2" && (moment == killGrow || moment == killGrown) { // a table grows once for all that is there
					polltest.Until(t, "the child has landed what was there", func() bool { return w.holds(t) == 20 })
				}
				put(20, 40)
				died()
				w.land(t, external.JSON(w.name, w.topic, false))
				w.have(t, want)
				if got := w.reasons(); got != "" {
					t.Errorf("dead letters: %s", got)
				}
			})
		}
	}
}

// Landers of one table that grow it concurrently, each by the records of its partitions, do not
// disturb each other.
func TestLandersGrowATable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kafkaserver.Embedded(t))
	table := external.JSON(w.name, w.topic, false)
	one, _ := w.start(t, table)
	_, _ = w.start(t, external.JSON(w.name, w.topic, false))
	want := map[int32][]string{}
	for i := range 12 {
		for partition := range int32(2) {
			value := fmt.Sprintf(`{"both%d":%d,"of%d_%d":%d}`, i/4, i, partition, i/3, i)
			if partition == 1 && i >= 6 { // what one makes a number is text to the other
				value = fmt.Sprintf(`{"both%d":"%d"}`, i/4, i)
			}
			w.put(t, partition, value)
			want[partition] = append(want[partition], value)
		}
	}
	w.landed(t, one)
	for at, row := range w.rows(t) {
		var partition, offset int
		if _, err := fmt.Sscanf(at, "%d/%d", &partition, &offset); err != nil {
			t.Fatal(err)
		}
		value := want[int32(partition)][offset/2] // each is followed by the marker of its commit
		if got := flat(t, row); got != flat(t, value) {
			t.Errorf("%s: %s, want %s", at, row, value)
		}
	}
}

// flat returns the content of an object, independent of the columns that hold it.
func flat(t *testing.T, text string) string {
	t.Helper()
	var fields, out map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatal(err)
	}
	out = map[string]any{}
	for name, v := range fields {
		if quoted, ok := v.(string); ok && strings.HasPrefix(quoted, `"`) { // a column of mixed values has JSON
			if err := json.Unmarshal([]byte(quoted), &v); err != nil {
				t.Fatal(err)
			}
		}
		name = strings.TrimSuffix(name, "_json")
		out[name] = v
	}
	return fmt.Sprint(out)
}
