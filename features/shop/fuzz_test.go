package shop

import (
	"reflect"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// FuzzProject: whatever the payload of an event is, each source returns facts that a group can use,
// or an error.
func FuzzProject(f *testing.F) {
	for _, m := range []event.Event{
		orderEvent(f, placed()), orderEvent(f, added()), orderEvent(f, cancelled()),
		visit(f, func(m *behaviorv1.BehaviorEvent) { m.Event, m.Properties = "Product Viewed", `{"sku":"MUG"}` }),
		visit(f, func(m *behaviorv1.BehaviorEvent) { m.Type, m.Properties = "page", `{"path":1.5}` }),
	} {
		f.Add(m.Data, m.Stream)
	}
	f.Add([]byte("\x0a\x0b\x0a\x03MUG\x10\x09\x22\x02\x08\x05"), "MUG") // received
	f.Fuzz(func(t *testing.T, payload []byte, stream string) {
		for name, s := range sources() {
			e := event.Event{Stream: stream, Data: payload}
			facts, err := s.Project(e)
			if err != nil {
				if facts != nil {
					t.Errorf("%s: facts beside the error %v", name, err)
				}
				continue
			}
			checkFacts(t, s, facts)
			if again, err := s.Project(e); err != nil || !reflect.DeepEqual(again, facts) {
				t.Errorf("%s: the second time, it returned %+v, %v, and before %+v", name, again, err, facts)
			}
		}
	})
}

// checkFacts checks what the rest of the system relies on.
func checkFacts(t *testing.T, s features.Source, facts []features.Fact) {
	t.Helper()
	seen := map[[2]string]bool{}
	for _, f := range facts {
		switch id := [2]string{f.Entity, f.Key}; {
		case f.Entity == "" || f.Key == "" || seen[id]:
			t.Errorf("%s: entity %q and key %q are empty or not unique", s.Name, f.Entity, f.Key)
		case f.At.Location() != time.UTC || f.At.Nanosecond()%1000 != 0:
			t.Errorf("%s: time %v", s.Name, f.At)
		case len(f.Values) != len(s.Columns):
			t.Errorf("%s: %d values for %d columns", s.Name, len(f.Values), len(s.Columns))
		default:
			seen[id] = true
		}
		for i, v := range f.Values {
			if v.Kind != exact.Null && v.Kind != s.Columns[i].Kind || v.Kind != exact.Null && f.Retracted {
				t.Errorf("%s.%s: %+v, retracted: %v", s.Name, s.Columns[i].Name, v, f.Retracted)
			}
		}
	}
}

// BenchmarkProject measures the facts of events, which every reader of the log computes.
func BenchmarkProject(b *testing.B) {
	large := placed()
	large.Lines = nil
	for n := range 20 {
		large.Lines = append(large.Lines, line(uint32(n+1), "2212"+string(rune('A'+n)), 6, gbp(2, 550_000_000)))
	}
	order := orderEvent(b, large)
	view := visit(b, func(m *behaviorv1.BehaviorEvent) {
		m.Event, m.Properties = "Product Viewed", `{"sku":"MUG","price":2.55}`
	})
	for _, c := range []struct {
		source string
		of     event.Event
	}{
		{"all of millrace.orders", order}, {"customer_orders", order}, {"customer_order_lines", order},
		{"product_order_lines", order}, {"basket_pairs", order}, {"visitor_actions", view},
	} {
		b.Run(c.source, func(b *testing.B) {
			var of []features.Source
			for name, s := range sources() {
				if name == c.source || c.source == "all of "+s.Topic {
					of = append(of, s)
				}
			}
			facts, other := 0, orderEvent(b, added())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := readOrder(other); err != nil { // forget the last payload
					b.Fatal(err)
				}
				for _, s := range of {
					all, err := s.Project(c.of)
					if err != nil {
						b.Fatal(err)
					}
					facts += len(all)
				}
			}
			b.ReportMetric(float64(facts)/b.Elapsed().Seconds(), "facts/s")
		})
	}
}
