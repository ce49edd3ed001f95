package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// BenchmarkIngest compares feeding the lines of orders from Kafka into their table of facts with
// inserting the same rows by clickhouse-go, in batches of the same size, from columns that are ready.
// The processor time of both is that of this process and of the engine. The unit %-of-bare is the
// number of rows per second of processor time, relative to the bare insert.
func BenchmarkIngest(b *testing.B) {
	k := &kafkaserver.Cluster{} // a process of its own, whose time does not count
	b.Cleanup(func() { must(b, k.Stop()) })
	brokers := strings.Split(k.Brokers(b), ",")
	engine := clickhousetest.Shared(b)
	store := clickhousetest.OpenStoreOn(b, engine)
	bare := clickhousetest.Conn(b, engine)
	var fed, inserted time.Duration
	total := 0
	for b.Loop() {
		w := &world{topic: "t-" + uuid.NewString()[:8], rnd: rand.New(rand.NewPCG(1, 1)), now: start}
		w.Producer = fetchtest.New(b, brokers, w.topic)
		must(b, w.CreateTopic(b.Context(), w.topic, partitions))
		group := linesOf(w.topic)
		facts := w.order(b, &group.Sources[0], 50_000)
		c := w.config(store)
		c.Brokers, c.Groups = brokers, []*features.Group{group}
		c.CommitInterval, c.CommitFacts = commitInterval, commitFacts
		h := open(b, c)
		source := h.sources[0]

		before := used(b, engine.PID())
		ctx, cancel := context.WithCancel(b.Context())
		err := newWriter(h, source).session(ctx, func() {
			if rows(b, store, source.facts, "count()") == int64(len(facts)) {
				cancel()
			}
		})
		if ctx.Err() == nil {
			b.Fatal(err)
		}
		cancel()
		fed += used(b, engine.PID()) - before

		other := newSource(features.Source{Name: source.Name + "_bare", Columns: source.Columns}, 0)
		must(b, store.CreateTable(b.Context(), other.facts))
		var batches [][]any
		for facts := range slices.Chunk(facts, commitFacts) {
			batches = append(batches, new(factColumns).fill(other, uint64(len(batches)), facts))
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
		if have := rows(b, store, other.facts, "count()"); have != int64(len(facts)) {
			b.Fatalf("the bare insert has %d rows, want %d", have, len(facts))
		}
		total += len(facts)
	}
	b.ReportMetric(float64(fed.Microseconds())/float64(total), "cpu-µs/row")
	b.ReportMetric(float64(inserted.Microseconds())/float64(total), "bare-cpu-µs/row")
	b.ReportMetric(100*float64(inserted)/float64(fed), "%-of-bare")
}

// linesOf returns the group of the popularity of products, with only the lines of orders, from a
// topic. Its table of facts has the topic in its name.
func linesOf(topic string) *features.Group {
	groups := shop.Groups(shop.Options{})
	group := *groups[slices.IndexFunc(groups, func(g *features.Group) bool { return g.Name == "product_popularity" })]
	lines := group.Sources[slices.IndexFunc(group.Sources, func(s features.Source) bool {
		return s.Name == "product_order_lines"
	})]
	group.Features = slices.DeleteFunc(slices.Clone(group.Features), func(f features.Feature) bool {
		return f.Source != lines.Name
	})
	lines.Name, lines.Topic = lines.Name+"_"+strings.ReplaceAll(topic, "-", "_"), topic
	for i := range group.Features {
		f := &group.Features[i]
		if f.Source = lines.Name; f.Over != nil {
			over := *f.Over
			over.Source, f.Over = lines.Name, &over
		}
	}
	group.Sources = []features.Source{lines}
	return &group
}

// order writes orders of four lines to the topic, one every few seconds of event time, and returns
// their facts.
func (w *world) order(b *testing.B, s *features.Source, orders int) (facts []features.Fact) {
	b.Helper()
	const transaction = 10_000
	var ends [partitions]int64
	for range orders / transaction {
		records := make([]fetchtest.Record, transaction)
		for i := range records {
			w.number++
			w.now = w.now.Add(time.Duration(w.rnd.IntN(5_000_000)) * time.Microsecond)
			id, partition := uuid.NewString(), int32(w.rnd.IntN(partitions))
			e := event.Event{
				ID: uuid.Must(uuid.NewV7()), Aggregate: event.Order.Name, Stream: id, Version: 1,
				Type: "millrace.order.v1.OrderPlaced", Data: placed(b, w.rnd, id, w.now),
				OccurredAt: w.now, RecordedAt: w.now, Position: event.Position{Sequence: w.number},
			}
			of, err := s.Project(e)
			must(b, err)
			for n := range of {
				of[n].Known = w.now
				of[n].Origin = features.Origin{Topic: w.topic, Partition: partition, Offset: ends[partition], Index: int32(n)}
			}
			facts, ends[partition] = append(facts, of...), ends[partition]+1
			records[i] = fetchtest.Event(partition, e)
		}
		must(b, w.Commit(b.Context(), w.topic, records...))
		for p := range ends { // the marker of the transaction
			ends[p]++
		}
	}
	return facts
}

// placed returns the payload of the event of an order of four products.
func placed(b *testing.B, rnd *rand.Rand, id string, at time.Time) []byte {
	b.Helper()
	customer := uuid.NewString()
	order := &orderv1.OrderPlaced{OrderId: id, CustomerId: &customer, Reference: id[:8], Currency: "GBP", Country: "GB",
		Total: &money.Money{CurrencyCode: "GBP", Units: 10}, OrderedAt: timestamppb.New(at)}
	for n := range uint32(4) {
		order.Lines = append(order.Lines, &orderv1.OrderLine{Number: n + 1, Sku: fmt.Sprint("SKU-", rnd.IntN(20_000)),
			Quantity:  1 + rnd.Int64N(12),
			UnitPrice: &money.Money{CurrencyCode: "GBP", Units: rnd.Int64N(20), Nanos: 950_000_000}})
	}
	data, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: order}})
	must(b, err)
	return data
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
