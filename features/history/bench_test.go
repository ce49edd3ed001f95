package history

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
)

// BenchmarkIngest compares feeding facts from Kafka into their table with inserting the same rows by
// clickhouse-go, from columns that are ready. The processor time of both is that of this process,
// which includes the embedded broker, and of the engine. The unit %-of-bare is the number of rows per
// second of processor time, relative to the bare insert.
func BenchmarkIngest(b *testing.B) {
	const rounds, perEvent, events = 5, 4, 10_000 // of a round
	engine := clickhousetest.Shared(b)
	store := clickhousetest.OpenStoreOn(b, engine)
	bare := clickhousetest.Conn(b, engine)
	var fed, inserted time.Duration
	total := 0
	for b.Loop() {
		w := newWorld(b, 1)
		for range rounds {
			var records []fetchtest.Record
			for n := range events {
				var values []string
				for range perEvent {
					values = append(values, fmt.Sprintf("c%d %s %d %d %s", w.rnd.IntN(20_000), uuid.NewString(), w.at(),
						w.rnd.IntN(2000), []string{"GB", "FR", "DE"}[w.rnd.IntN(3)]))
				}
				records = append(records, w.event(b, int32(n%partitions), strings.Join(values, ";")))
			}
			must(b, w.Commit(b.Context(), w.topic, records...))
		}
		c := w.config(store)
		c.CommitInterval, c.CommitFacts = commitInterval, commitFacts
		h := open(b, c)
		source := h.sources[0]

		before := used(b, engine.PID())
		ctx, cancel := context.WithCancel(b.Context())
		err := newWriter(h, source).session(ctx, func() {
			if rows(b, store, source.facts, "count()") == int64(len(w.facts)) {
				cancel()
			}
		})
		if ctx.Err() == nil {
			b.Fatal(err)
		}
		cancel()
		fed += used(b, engine.PID()) - before

		other := newSource(features.Source{Name: w.group.Sources[0].Name + "_bare", Columns: source.Columns}, 0)
		must(b, store.CreateTable(b.Context(), other.facts))
		var batches [][]any
		for facts := range slices.Chunk(w.facts, commitFacts) {
			batches = append(batches, columnsOf(other, uint64(len(batches)), facts))
		}
		before = used(b, engine.PID())
		for _, columns := range batches {
			batch, err := bare.PrepareBatch(b.Context(), "INSERT INTO "+other.facts.FullName())
			must(b, err)
			for i, values := range columns {
				must(b, batch.Column(i).Append(values))
			}
			must(b, batch.Send())
		}
		inserted += used(b, engine.PID()) - before
		if have := rows(b, store, other.facts, "count()"); have != int64(len(w.facts)) {
			b.Fatalf("the bare insert has %d rows, want %d", have, len(w.facts))
		}
		total += len(w.facts)
	}
	b.ReportMetric(float64(fed.Microseconds())/float64(total), "cpu-µs/row")
	b.ReportMetric(float64(inserted.Microseconds())/float64(total), "bare-cpu-µs/row")
	b.ReportMetric(100*float64(inserted)/float64(fed), "%-of-bare")
}

// used returns the processor time of this process and another one.
func used(b *testing.B, other int) (sum time.Duration) {
	b.Helper()
	const tick = 10 * time.Millisecond // of Linux
	for _, pid := range []int{os.Getpid(), other} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(b, err)
		// The fields after the name of the program, which is in parentheses.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, field := range fields[11:13] { // utime and stime
			n, err := strconv.Atoi(field)
			must(b, err)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
