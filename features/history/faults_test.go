package history

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/polltest"
)

// log returns the events of everything on the topic, as a store of events would.
func (w *world) log() iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		for _, e := range w.events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// total returns the total of a digest.
func total(t testing.TB, d *digest.Digest, err error) digest.Sum {
	t.Helper()
	must(t, err)
	return d.Total()
}

// The digests of facts and tiles equal those of what they are made from, and differ if a row is
// missing or wrong.
func TestDigests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8)
	s := clickhousetest.OpenStore(t)
	h := open(t, w.config(s))
	stop := running(t, h)
	w.trade(t, 50)
	w.filled(t, h)
	w.trade(t, 20)
	w.filled(t, h)
	stop()
	facts, tiles := h.Contents()[0], h.Contents()[1]
	expected, err := facts.Expected(w.log())
	want := total(t, expected, err)
	if want.Count != uint64(len(w.facts)) {
		t.Errorf("%d facts are expected, want %d", want.Count, len(w.facts))
	}
	have, err := facts.Digest(t.Context())
	if have := total(t, have, err); have != want {
		t.Errorf("facts are %+v, want %+v", have, want)
	}
	should, err := tiles.Source(t.Context())
	wantTiles := total(t, should, err)
	have, err = tiles.Digest(t.Context())
	if have := total(t, have, err); have != wantTiles || have.Count == 0 {
		t.Errorf("tiles are %+v, want %+v", have, wantTiles)
	}

	// Each column of the tiles is part of the digest: a tile of one is changed after the other.
	last := wantTiles
	for _, p := range h.tiles[0].parts {
		for _, c := range p.columns() {
			must(t, s.Exec(t.Context(), fmt.Sprintf("INSERT INTO %[1]s (entity, level, tile, `%[2]s`) "+
				"SELECT entity, level, tile, %[3]s FROM %[1]s FINAL WHERE level = 'day' AND `%[4]s_count` > 0 "+
				"AND (entity, toDate(tile)) NOT IN (SELECT entity, toDate(at) FROM %[5]s) ORDER BY entity, tile LIMIT 1",
				h.tiles[0].table.FullName(), c.name, changed(c), p.name, h.sources[0].corrections.FullName())))
			have, err = tiles.Digest(t.Context())
			if have := total(t, have, err); have == last {
				t.Errorf("%s of a tile has changed, and the digest is the same", c.name)
			} else {
				last = have
			}
		}
	}

	// Tiles that count facts twice, and a fact that is missing.
	must(t, h.insertTiles(t.Context(), h.tiles[0], "another", h.tiles[0].aggregate(w.facts, 1, minute)))
	have, err = tiles.Digest(t.Context())
	if have := total(t, have, err); have == last {
		t.Error("facts count twice, and the digest is the same")
	}
	must(t, s.Exec(t.Context(), "TRUNCATE TABLE "+h.sources[0].facts.FullName()))
	must(t, newWriter(h, h.sources[0]).insertFacts(t.Context(), 99, w.facts[1:]))
	have, err = facts.Digest(t.Context())
	if have := total(t, have, err); have == want || have.Count >= want.Count {
		t.Errorf("a fact is missing, and the digest is %+v", have)
	}
}

// changed returns a value that changes a tile which it is merged into.
func changed(c stateColumn) string {
	switch value := map[string]string{"sum": "1", "min": "-toInt256('1000000000000000000000')",
		"max": "toInt256('1000000000000000000000')"}[c.function]; {
	case strings.HasPrefix(c.kind, "Tuple") && strings.HasSuffix(c.kind, "String)"):
		return "tuple(if('" + c.function + "' = 'min', -1, 1) * 9000000000000000000, '', 'x')"
	case strings.HasPrefix(c.kind, "Tuple"):
		return "tuple(if('" + c.function + "' = 'min', -1, 1) * 9000000000000000000, '', toInt256(0))"
	case c.function == "maxMap":
		return "map(0, 60)"
	case c.kind == "Map(String, Int64)":
		return "map('x', 1)"
	case c.function == "sumMap":
		return "map(7, 1)"
	default:
		return value
	}
}

// ClickHouse and Go put numbers into the same buckets, also at their bounds.
func TestBucketsInClickHouse(t *testing.T) {
	t.Parallel()
	var numbers []string
	var want []int32
	for _, bound := range exact.Bounds() {
		if bound > 1<<53 {
			break
		}
		for d := range int64(3) {
			n := exact.FromInt64(int64(bound) + d - 1)
			numbers, want = append(numbers, n.String()), append(want, exact.Bucket(n))
			numbers, want = append(numbers, n.Neg().String()), append(want, exact.Bucket(n.Neg()))
		}
	}
	rows, err := clickhousetest.OpenStore(t).Query(t.Context(), bucketBounds()+"SELECT "+bucketOf("v")+
		" FROM (SELECT toInt256(arrayJoin(splitByChar(' ', ?))) AS v)", strings.Join(numbers, " "))
	must(t, err)
	defer rows.Close() //nolint:errcheck // rows.Err reports it
	i := 0
	for ; rows.Next(); i++ {
		var have int32
		must(t, rows.Scan(&have))
		if have != want[i] {
			t.Fatalf("%s is in bucket %d, want %d", numbers[i], have, want[i])
		}
	}
	if must(t, rows.Err()); i != len(want) || i < 10_000 {
		t.Errorf("compared %d of %d numbers", i, len(want))
	}
}

// A table that cannot take data stops with its reason, while the others are filled. It continues
// when it is repaired.
func TestTableStopsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 9)
	s := clickhousetest.OpenStore(t)
	h := open(t, w.config(s))
	broken := h.tiles[0].table
	broken.Columns = slices.Clone(broken.Columns)
	broken.Columns[5].Type = "SimpleAggregateFunction(max, Int64)"
	must(t, s.CreateTable(t.Context(), broken))
	running(t, h)
	w.trade(t, 20)
	ends, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	polltest.Until(t, "the table has stopped", func() bool {
		faults := h.Faults()
		return len(faults) == 1 && faults[0].Table == broken.Name && faults[0].Stopped &&
			errors.Is(faults[0].Reason, clickhouse.ErrSchema)
	})
	polltest.Until(t, "the facts are written, and nothing waits for the table", func() bool {
		ok, err := h.Reached(t.Context(), w.topic, ends)
		must(t, err)
		return ok
	})
	must(t, s.Exec(t.Context(), "DROP TABLE "+broken.FullName()+" SYNC"))
	w.filled(t, h)
	w.check(t, h, 3)
	polltest.Until(t, "the fault is gone", func() bool { return len(h.Faults()) == 0 })
}

// While ClickHouse does not answer, also at the start, feeding waits, and then it continues.
func TestClickHouseIsDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 10)
	e := clickhousetest.Start(t)
	h := open(t, w.config(clickhousetest.OpenStoreOn(t, e)))
	kill(t, e)
	running(t, h)
	w.trade(t, 20)
	w.filled(t, h)
	w.trade(t, 20)
	kill(t, e)
	w.trade(t, 20)
	w.filled(t, h)
	w.check(t, h, 5)
}

// kill kills the engine's process. It is started again, after a while.
func kill(t *testing.T, e *clickhouse.Engine) {
	t.Helper()
	pid := e.PID()
	p, err := os.FindProcess(pid)
	must(t, err)
	must(t, p.Kill())
	polltest.Until(t, "another process", func() bool { return e.PID() != pid })
}

// A topic that does not exist yet is waited for. One that was recreated stops its tables, until they
// are dropped.
func TestTopics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 11)
	must(t, w.DeleteTopic(t.Context(), w.topic))
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	stop := running(t, h)
	polltest.Until(t, "the topic is waited for", func() bool {
		faults := h.Faults()
		return len(faults) == 1 && !faults[0].Stopped && strings.Contains(faults[0].Reason.Error(), "unknown topic")
	})
	must(t, w.CreateTopic(t.Context(), w.topic, partitions))
	w.trade(t, 10)
	w.filled(t, h)
	status, err := h.Status(t.Context())
	must(t, err)
	if len(status) != 2 || status[0].Rows != uint64(len(w.facts)) || !status[0].AsOf.Equal(w.now) || len(status[1].Next) == 0 {
		t.Errorf("the status is %+v, want %d facts as of %s", status, len(w.facts), w.now)
	}
	must(t, w.DeleteTopic(t.Context(), w.topic))
	must(t, w.CreateTopic(t.Context(), w.topic, partitions))
	polltest.Until(t, "the table has stopped", func() bool {
		faults := h.Faults()
		return len(faults) > 0 && faults[0].Stopped
	})
	stop()
	dropped, err := h.Drop(t.Context(), w.topic)
	must(t, err)
	if len(dropped) != 5 {
		t.Errorf("dropped %v, want five tables", dropped)
	}
	w.ends, w.facts, w.kept = [partitions]int64{}, nil, nil
	again := open(t, w.config(h.cfg.Store))
	running(t, again)
	w.trade(t, 10)
	w.filled(t, again)
	w.check(t, again, 3)
}
