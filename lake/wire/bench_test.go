package wire_test

import (
	"io"
	"math/rand/v2"
	"strconv"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/lake/pages"
)

// benchRows is the number of rows in the columns before they are reset.
const benchRows = 4096

// Decoding only, compared with building messages first.
func BenchmarkDecode(b *testing.B) {
	for name, load := range loads(b) {
		b.Run(name+"/columns", func(b *testing.B) {
			tab := newTable(b, load.md)
			measure(b, load, func(wire []byte) {
				if tab.columns.Rows() == benchRows {
					tab.columns.Reset()
				}
				if err := tab.Append(wire); err != nil {
					b.Fatal(err)
				}
			})
		})
		b.Run(name+"/dynamicpb", func(b *testing.B) {
			m := dynamicpb.NewMessage(load.md)
			measure(b, load, func(wire []byte) {
				if err := proto.Unmarshal(wire, m); err != nil {
					b.Fatal(err)
				}
			})
		})
		if load.generated == nil {
			continue
		}
		b.Run(name+"/generated", func(b *testing.B) {
			measure(b, load, func(wire []byte) {
				if err := proto.Unmarshal(wire, load.generated); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// Decoding and writing as Parquet.
func BenchmarkDecodeToParquet(b *testing.B) {
	for name, load := range loads(b) {
		b.Run(name, func(b *testing.B) {
			tab := newTable(b, load.md)
			w, err := pages.New(tab.columns.Fields())
			if err != nil {
				b.Fatal(err)
			}
			rows := 0
			flush := func() {
				if rows == 0 {
					w.Begin(io.Discard)
				}
				if err := w.Write(tab.columns); err != nil {
					b.Fatal(err)
				}
				rows += tab.columns.Rows()
				tab.columns.Reset()
				if rows >= 1<<18 {
					f, err := w.End()
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(f.Size)/float64(rows), "B/row")
					rows = 0
				}
			}
			measure(b, load, func(wire []byte) {
				if tab.columns.Rows() == benchRows {
					flush()
				}
				if err := tab.Append(wire); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// measure passes records to f one after another, and reports the CPU time, which is more reliable
// than the clock on a busy machine.
func measure(b *testing.B, load load, f func([]byte)) {
	b.ReportAllocs()
	for _, wire := range load.records {
		f(wire)
	}
	before := cpuTime(b)
	i := 0
	for b.Loop() {
		f(load.records[i])
		if i++; i == len(load.records) {
			i = 0
		}
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()*1e6/float64(b.N), "cpu-µs/row")
	b.ReportMetric(float64(load.bytes)/float64(len(load.records)), "wire-B/row")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// load has records of one message type.
type load struct {
	md        protoreflect.MessageDescriptor
	generated proto.Message
	records   [][]byte
	bytes     int
}

func loads(b *testing.B) map[string]load {
	b.Helper()
	events := load{md: flat}
	orders := load{md: new(orderv1.OrderEvent).ProtoReflect().Descriptor(), generated: new(orderv1.OrderEvent)}
	r := rand.New(rand.NewPCG(1, 2))
	for range 8 * benchRows {
		event, order := marshal(b, drawEvent(r)), marshal(b, drawOrder(r))
		events.records, events.bytes = append(events.records, event), events.bytes+len(event)
		orders.records, orders.bytes = append(orders.records, order), orders.bytes+len(order)
	}
	return map[string]load{"events": events, "orders": orders}
}

var eventID int64

func drawEvent(r *rand.Rand) proto.Message {
	m := dynamicpb.NewMessage(flat)
	eventID++
	sku := strconv.Itoa(10_000 + r.IntN(5_000))
	at := m.Mutable(flat.Fields().ByName("at")).Message()
	at.Set(at.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(1_790_000_000+eventID/100))
	at.Set(at.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(r.Int32N(1000)*1_000_000))
	for name, v := range map[protoreflect.Name]any{
		"id": eventID, "customer_id": int64(r.IntN(1_000_000)), "type": []string{"view", "search", "add_to_cart", "checkout"}[r.IntN(4)],
		"sku": sku, "quantity": int32(r.IntN(9)), "price": float64(r.IntN(10_000)) / 100, "currency": "EUR",
		"country": []string{"DE", "FR", "NL", "GB", "ES"}[r.IntN(5)], "device": []string{"phone", "tablet", "desktop"}[r.IntN(3)],
		"new_customer": r.IntN(2) == 0, "session": int64(r.IntN(1 << 40)), "page": "/product/" + sku,
	} {
		m.Set(flat.Fields().ByName(name), protoreflect.ValueOf(v))
	}
	return m
}
