package tracking

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// BenchmarkParts measures what the intake does with a request before it writes the events: reading
// the body, and then making the records. BenchmarkIntake measures whole requests.
func BenchmarkParts(b *testing.B) {
	i, err := New(Config{Kafka: kafka.Config{Brokers: "127.0.0.1:9"}, Sources: DemoSources(), Requests: 1, IDs: 1,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	source, received := i.config.Sources.find(DemoKey), event.Time(time.Now())
	for _, events := range []int{1, 15} {
		kind, body := "track", browserEvent
		if events > 1 {
			kind, body = "", `{"batch":[`+strings.Repeat(browserEvent+",", events-1)+browserEvent+`]}`
		}
		m := &memory{body: []byte(body)}
		b.Run(fmt.Sprintf("read/%d", events), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if parsed, err := readBody(m, kind); err != nil || parsed.bad != nil || len(parsed.events) != events {
					b.Fatal(parsed.bad, err)
				}
			}
		})
		parsed, err := readBody(m, kind)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("records/%d", events), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if s := i.sort(&parsed, m, kind, source, received); len(s.records) != events {
					b.Fatal(s.rejected)
				}
			}
		})
	}
}

// browserEvent is an event as the browser's client sends it.
const browserEvent = `{"timestamp":"2026-01-31T12:00:00.123Z","integrations":{},"type":"track",` +
	`"event":"Product Viewed","messageId":"ajs-next-1769800000001-000000000000000000000001",` +
	`"anonymousId":"5f2c0b5e-0f64-4c3a-9f55-000000104729","userId":null,` +
	`"properties":{"sku":"17","name":"red-lantern-63z","price":12.50,"currency":"GBP","position":3,` +
	`"category":"Lighting","list":"search results","query":"white-mug-2a"},` +
	`"context":{"page":{"path":"/products/red-lantern-63z","referrer":"https://www.example.com/search?q=red-lantern",` +
	`"search":"?q=red-lantern","title":"red-lantern-63z","url":"https://www.example.com/products/red-lantern-63z"},` +
	`"userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",` +
	`"userAgentData":{"brands":[{"brand":"Chromium","version":"130"},{"brand":"Not?A_Brand","version":"99"}],` +
	`"mobile":false,"platform":"Linux"},` +
	`"locale":"en-GB","library":{"name":"analytics.js","version":"npm:next-1.81.0"},"timezone":"Europe/London"},` +
	`"_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}}`
