package abuse

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
)

// attackTopics places orders, writes garbage records to the topics, and confirms the orders.
// Queries with the tokens of the confirmations must show the orders as confirmed, also after a
// restart on this log. The command verify must report exactly the records that are not events.
func (s *system) attackTopics(t *testing.T, report *strings.Builder) {
	t.Helper()
	const orders = 20
	var ids []string
	for range orders {
		id := uuid.Must(uuid.NewV7()).String()
		s.call(t, "OrderService/PlaceOrder", map[string]any{"orderId": id, "currency": "GBP", "country": "GB",
			"lines": []any{map[string]any{
				"sku": "MUG", "quantity": 1, "unitPrice": map[string]any{"currencyCode": "GBP", "units": 9},
			}}})
		ids = append(ids, id)
	}
	p, err := kafka.NewProducer(kafka.Config{Brokers: s.addresses["kafka"]})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(0, 12))
	var all []kafka.Record
	onEventTopics := 0 // the records that verify reads; it does not read the topic of positions
	for i := range *inputs {
		record := garbageRecord(r, ids[i%len(ids)])
		if record.Topic != relay.PositionsTopic {
			onEventTopics++
		}
		all = append(all, record)
	}
	for len(all) > 0 {
		n := min(len(all), 500)
		if err := p.ProduceAll(t.Context(), all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	p.Close()
	tokens := map[string]string{}
	for _, id := range ids {
		var receipt struct{ Receipt struct{ Token string } }
		if err := json.Unmarshal(s.call(t, "OrderService/ConfirmOrder", map[string]any{"orderId": id}),
			&receipt); err != nil {
			t.Fatal(err)
		}
		tokens[id] = receipt.Receipt.Token
	}
	check := func(when string) {
		for _, id := range ids {
			answer := string(s.call(t, "OrderQueryService/GetOrder",
				map[string]any{"orderId": id, "token": tokens[id]}))
			if !strings.Contains(answer, "CONFIRMED") {
				t.Errorf("%s: order %s is %s, want confirmed", when, id, answer)
			}
		}
		out, err := s.command(t, "verify", "--addr", s.addresses["api"], "--admin-addr", s.addresses["admin"],
			"--output", "json")
		reported := 0
		for _, m := range notEvents.FindAllStringSubmatch(out, -1) {
			n, _ := strconv.Atoi(m[1]) // the pattern matches digits only
			reported += n
		}
		if err != nil || reported != onEventTopics {
			t.Errorf("%s: verify returned %v and reported %d records that are not events, want %d:\n%s",
				when, err, reported, onEventTopics, out)
		}
	}
	check("beside garbage records")
	s.stop()
	s.start(t)
	check("after a restart")
	fmt.Fprintf(report,
		"| records on topics | %d | %d orders, placed before and confirmed after them, "+
			"are confirmed in every answer, also after a restart |\n", *inputs, orders)
}

var notEvents = regexp.MustCompile(`"not_events": (\d+)`)

// garbageRecord returns a record that the relay did not write. Most of them resemble an event of
// the order.
func garbageRecord(r *rand.Rand, order string) kafka.Record {
	topics := []string{relay.PositionsTopic}
	for _, a := range event.Aggregates() {
		topics = append(topics, a.Topic)
	}
	garbage := make([]byte, 1+r.IntN(300))
	for i := range garbage {
		garbage[i] = byte(r.UintN(256))
	}
	garbage[0] = 0xff // not a tag of any field
	e := event.Event{
		ID: uuid.Must(uuid.NewV7()), Aggregate: "order", Stream: order, Version: 2 + r.Uint64N(3),
		Type: pick(r, []string{"millrace.order.v1.OrderPlaced", "millrace.order.v1.OrderConfirmed"}),
		Data: garbage, OccurredAt: time.Now(), RecordedAt: time.Now(),
		Position: event.Position{Sequence: 1 + r.Uint64N(99999999)},
	}
	record := kafka.Record{
		Topic: "millrace.orders", Partition: kafka.AnyPartition,
		Key: []byte(order), Value: garbage, Headers: e.Headers(),
	}
	switch r.IntN(9) {
	case 0: // nothing of an event
		record.Topic, record.Key, record.Headers = pick(r, topics), garbage, nil
	case 1: // an unknown stream
		record.Key = []byte(uuid.NewString())
	case 2: // a position far ahead
		setHeader(record.Headers, "ce_storeposition", pick(r, []string{
			"99999999.0", "0.99999999", "18446744073709551615.18446744073709551615", "-1.0",
		}))
	case 3: // a damaged header
		damaged := record.Headers[r.IntN(len(record.Headers))].Key
		setHeader(record.Headers, damaged, pick(r, []string{"", "x", "\xff\xfe", strings.Repeat("9", 400)}))
	case 4: // a tombstone
		record.Value = nil
	case 5: // a large value
		record.Value = bytes.Repeat(garbage, 200)
	case 6: // many headers
		for range 100 {
			record.Headers = append(record.Headers, event.Header{Key: "x", Value: garbage})
		}
	case 7: // the type of another topic
		record.Topic = pick(r, topics)
	case 8: // an unknown type
		setHeader(record.Headers, "ce_type", "millrace.order.v1.OrderTeleported")
	}
	return record
}

// setHeader replaces the value of a header.
func setHeader(headers []event.Header, key, value string) {
	for i := range headers {
		if headers[i].Key == key {
			headers[i].Value = []byte(value)
		}
	}
}

// call calls a method of the order services until it is answered. It retries while views catch up.
func (s *system) call(t *testing.T, method string, message map[string]any) []byte {
	t.Helper()
	body, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: time.Minute}
	deadline, tick := time.After(timeout), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		res, err := client.Post("http://"+s.addresses["api"]+"/millrace.order.v1."+method, "application/json",
			bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(res.Body)
		if err := res.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil && res.StatusCode == http.StatusOK {
			return answer
		}
		if res.StatusCode != http.StatusServiceUnavailable { // views catch up after a start
			t.Fatalf("%s: %s %s %v", method, res.Status, answer, err)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %s %s after %v", method, res.Status, answer, timeout)
		}
	}
}
