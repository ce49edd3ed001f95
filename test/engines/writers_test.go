package engines_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/ingest/demo"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/engines"
)

// startLoad runs the demo's shops in the system until the test stops it.
func (s *system) startLoad(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for seed := uint64(2); ; seed++ {
			_, err := demo.Run(ctx,
				demo.Config{BaseURL: "http://" + s.addr,
					Client: []client.Option{client.WithToken(tokenOf("owner"))}, Seed: seed, Orders: 100})
			if err != nil {
				done <- err
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; ctx.Err() == nil {
			t.Errorf("the load stopped: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// positions returns the next offset of each partition that the table has recorded.
func (l loaded) positions(t *testing.T) map[int32]int64 {
	t.Helper()
	at := map[int32]int64{}
	for key, value := range l.Properties {
		if rest, ok := strings.CutPrefix(key, "millrace.next-offset."); ok {
			var partition int32
			var next int64
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, '.')+1:]+" "+value, &partition, &next); err != nil {
				t.Fatal(err)
			}
			at[partition] = next
		}
	}
	return at
}

// some is a part of a table's current rows: those whose offset has a certain remainder.
type some struct {
	below map[int32]int64
	rest  int64
}

const parts = 11 // number of parts

// where returns the condition in SQL.
func (s some) where(d engines.Dialect) string {
	var each []string
	for partition, next := range s.below {
		each = append(each,
			fmt.Sprintf("(%s = %d AND %s < %d)", d.Name("partition"), partition, d.Name("offset"), next))
	}
	slices.Sort(each)
	return fmt.Sprintf("%s %% %d = %d AND (%s)", d.Name("offset"), parts, s.rest, strings.Join(each, " OR "))
}

func (s some) has(r record) bool { return r.offset%parts == s.rest && r.offset < s.below[r.partition] }

// change is a change by an engine while landers land in the same table.
type change struct {
	name      string
	statement func(is some) string
	deletes   bool // of some rows
	marks     bool // of some rows, by their correlation_id
}

const mark = "marked by others"

// written is a table, with the engine that changes it and the changes.
type written struct {
	table   string
	ask     func(context.Context, string) ([][]any, error)
	changes []change
}

func (s *system) writes(all engines.Engines) []written {
	const sparkTable, trinoTable = "lake.millrace.orders_events", "lake.millrace.stock_events"
	sparkCall := func(procedure string) func(some) string {
		return func(some) string { return "CALL lake.system." + procedure }
	}
	sparkMode := func(mode string) change {
		return change{name: mode, statement: func(some) string {
			return fmt.Sprintf("ALTER TABLE %s SET TBLPROPERTIES ('write.delete.mode'='%[2]s', 'write.merge.mode'='%[2]s', 'write.update.mode'='%[2]s')", sparkTable, mode)
		}}
	}
	deletes := func(table string, d engines.Dialect) change {
		return change{name: "DELETE", deletes: true,
			statement: func(is some) string { return "DELETE FROM " + table + " WHERE " + is.where(d) }}
	}
	merges := func(table string, d engines.Dialect) change {
		return change{name: "MERGE", marks: true, statement: func(is some) string {
			return fmt.Sprintf(`MERGE INTO %[1]s t USING (SELECT * FROM %[1]s WHERE %[2]s) s
				ON t.%[3]s = s.%[3]s AND t.%[4]s = s.%[4]s AND t.topic = s.topic WHEN MATCHED THEN UPDATE SET correlation_id = '%[5]s'`,
				table, is.where(d), d.Name("partition"), d.Name("offset"), mark)
		}}
	}
	return []written{
		{"orders_events", all.Spark.Query, []change{
			{name: "rewrite_data_files", statement: sparkCall("rewrite_data_files(table => 'millrace.orders_events', options => map('rewrite-all', 'true'))")},
			sparkMode("copy-on-write"), deletes(sparkTable, engines.SparkSQL), merges(sparkTable, engines.SparkSQL),
			sparkMode("merge-on-read"), deletes(sparkTable, engines.SparkSQL), merges(sparkTable, engines.SparkSQL),
			{name: "rewrite_position_delete_files", statement: sparkCall("rewrite_position_delete_files(table => 'millrace.orders_events', options => map('rewrite-all', 'true'))")},
			{name: "rewrite_data_files", statement: sparkCall("rewrite_data_files(table => 'millrace.orders_events', options => map('rewrite-all', 'true'))")},
			{name: "rewrite_manifests", statement: sparkCall("rewrite_manifests(table => 'millrace.orders_events')")},
			{name: "expire_snapshots", statement: sparkCall("expire_snapshots(table => 'millrace.orders_events', older_than => current_timestamp(), retain_last => 5)")},
		}},
		{"stock_events", all.Trino.Query, []change{
			deletes(trinoTable, engines.TrinoSQL), merges(trinoTable, engines.TrinoSQL),
			{name: "OPTIMIZE", statement: func(some) string { return "ALTER TABLE " + trinoTable + " EXECUTE optimize" }},
			deletes(trinoTable, engines.TrinoSQL),
			{name: "ANALYZE", statement: func(some) string { return "ANALYZE " + trinoTable }},
		}},
	}
}

// TestExternalWritersBesideLanders has Spark and Trino write to tables while landers land in them
// and maintenance works on them. In the end, each table must have every record of its topic once,
// except for the deleted ones, and every change must be there.
func TestExternalWritersBesideLanders(t *testing.T) {
	s := world.running(t)
	all := startEngines(t)
	stop := s.startLoad(t)
	for _, w := range s.writes(all) {
		t.Run(w.table, func(t *testing.T) {
			polltest.Until(t, "the table has records of each partition", func() bool {
				at := s.table(t, w.table).positions(t)
				return len(at) == 4 && slices.Min([]int64{at[0], at[1], at[2], at[3]}) > 2*parts
			})
			var deleted, marked []some
			for i, c := range w.changes {
				before := s.table(t, w.table).positions(t)
				is := some{before, int64(i % parts)}
				tries := s.retry(t, w, c, is)
				if c.deletes {
					deleted = append(deleted, is)
				}
				if c.marks {
					marked = append(marked, is)
				}
				after := s.table(t, w.table).positions(t)
				landed := int64(0)
				for partition, next := range before {
					if after[partition] < next {
						t.Errorf("%s: partition %d was at %d and is at %d", c.name, partition, next, after[partition])
					}
					landed += after[partition] - next
				}
				t.Logf("%s: after %d tries; %d records were landed meanwhile", c.name, tries, landed)
			}
			s.compareRows(t, all, w.table, deleted, marked)
		})
	}
	stop()
	// What Spark, Trino and maintenance left behind is a table that every engine can read.
	for _, w := range s.writes(all) {
		t.Run("read "+w.table, func(t *testing.T) {
			s.awaitLanded(t, w.table)
			sums := s.sums(t, all, s.table(t, w.table).Table)
			for _, other := range sums[1:] {
				if !other.Equal(engines.Summed{Engine: other.Engine, Count: sums[0].Count, Hash: sums[0].Hash}) {
					t.Errorf("%+v, and %+v", sums[0], other)
				}
			}
		})
	}
	log := s.log(t)
	conflicts := strings.Count(log, "commit failed, or its response was lost")
	t.Logf("the catalog rejected %d commits of landers, because another commit came first", conflicts)
	if conflicts == 0 {
		t.Error("no commit came between those of the landers: the test shows nothing")
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=ERROR") {
			t.Errorf("unexpected line in the log: %s", line)
		}
	}
	select {
	case <-s.process.Ended():
		t.Errorf("the system has exited: %s", log[max(0, len(log)-4000):])
	default:
	}
}

// maxTries limits how often an engine may retry because of other writers.
const maxTries = 10

// retry retries a change until it is committed.
func (s *system) retry(t *testing.T, w written, c change, is some) (tries int) {
	t.Helper()
	for tries = 1; ; tries++ {
		_, err := w.ask(t.Context(), c.statement(is))
		if err == nil {
			return tries
		}
		conflict := false
		for _, text := range []string{"CommitFailedException", "ValidationException", "conflicting",
			"Failed to commit", "Cannot commit"} {
			conflict = conflict || strings.Contains(err.Error(), text)
		}
		if !conflict || tries == maxTries {
			t.Fatalf("%s, try %d: %v", c.name, tries, err)
		}
		t.Logf("%s, try %d: %.400v", c.name, tries, err)
	}
}

// awaitLanded waits until a table has all records of its topic.
func (s *system) awaitLanded(t *testing.T, name string) (records []record) {
	t.Helper()
	table := s.table(t, name)
	records, ends := s.topic(t, topicOf(t, table))
	polltest.Until(t, name+" has all records of the topic", func() bool {
		at := s.table(t, name).positions(t)
		for partition, end := range ends {
			if at[partition] < end {
				return false
			}
		}
		return true
	})
	return records
}

// compareRows compares a table with its topic, record by record.
func (s *system) compareRows(t *testing.T, all engines.Engines, name string, deleted, marked []some) {
	t.Helper()
	records := s.awaitLanded(t, name)
	type place struct {
		partition int32
		offset    int64
	}
	want, byUs := map[place]bool{}, map[place]bool{} // by place; the value is whether it is marked
	last := map[int32]int64{}
	for _, r := range records {
		if slices.ContainsFunc(deleted, func(d some) bool { return d.has(r) }) {
			continue
		}
		at := place{r.partition, r.offset}
		want[at] = slices.ContainsFunc(marked, func(m some) bool { return m.has(r) })
		byUs[at] = true
		last[r.partition] = max(last[r.partition], r.offset)
	}
	rows, err := all.Trino.Query(t.Context(),
		`SELECT "partition", "offset", count(*), max(CAST(coalesce(correlation_id, '') = '`+mark+`' AS integer)), min(CAST(coalesce(correlation_id, '') = '`+
			mark+`' AS integer)) FROM lake.millrace.`+name+` GROUP BY 1, 2`)
	if err != nil {
		t.Fatal(err)
	}
	var wrong []string
	for _, row := range rows {
		numbers := make([]int64, len(row))
		for i, v := range row {
			if _, err := fmt.Sscan(fmt.Sprint(v), &numbers[i]); err != nil {
				t.Fatal(err)
			}
		}
		at := place{int32(numbers[0]), numbers[1]}
		if at.offset > last[at.partition] {
			continue // landed after the topic was read
		}
		isMarked, known := want[at]
		switch {
		case !known:
			wrong = append(wrong, fmt.Sprintf("%v was deleted", at))
		case numbers[2] != 1:
			wrong = append(wrong, fmt.Sprintf("%v is there %d times", at, numbers[2]))
		case isMarked != (numbers[3] == 1), numbers[3] != numbers[4]:
			wrong = append(wrong, fmt.Sprintf("%v: marked %v, want %v", at, numbers[3] == 1, isMarked))
		}
		delete(byUs, at)
	}
	for at := range byUs {
		wrong = append(wrong, fmt.Sprintf("%v is lost", at))
	}
	slices.Sort(wrong)
	t.Logf("%s: %d records on the topic, %d of them still in the table", name, len(records), len(want))
	if len(wrong) > 0 {
		b, _ := json.Marshal(wrong[:min(len(wrong), 20)]) // texts
		t.Errorf("%d of %s: %s", len(wrong), cmp.Or(name, "?"), b)
	}
}
