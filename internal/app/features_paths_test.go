package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	factfeed "github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
	"github.com/millrace/millrace/features/shop"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// TestVectorsAgree asks for the vectors of all groups in four ways, and they must agree to the last
// bit: features in memory, tiles and facts in ClickHouse, SQL over the lake's tables of events, and
// features.Evaluate over the records of the log. The times are random, and often on an edge of a
// window. The second half of the events is late: their times are before those of the first half. In both,
// customers are merged and parted, and visitors are linked to them.
func TestVectorsAgree(t *testing.T) {
	t.Parallel()
	c := featuresConfig(t)
	c.Features.Online.Retention = 2 * yearOfTrade // nothing is too old
	w := newTrade(10)
	w.serve(t, c, Commands, Relay, Lake, Features, Query, Admin, Tracking)
	groups := shop.Groups(shop.Options{})

	w.sell(t, 120)
	w.browse(t, 150)
	w.link(t, 12)
	facts := w.catchUp(t, groups)
	times, before := w.times(facts, 3), map[string]map[pair]features.Vector{}
	for _, g := range groups {
		before[g.Name] = w.check(t, g, facts, times, time.Time{})
	}
	known := time.Now()

	w.oldest = yearOfTrade
	w.sell(t, 120)
	w.browse(t, 150)
	w.link(t, 12)
	facts = w.catchUp(t, groups)
	for _, g := range groups {
		after, changed := w.check(t, g, facts, append(w.times(facts, 500), times...), time.Time{}), 0
		for at, v := range before[g.Name] {
			if !slices.EqualFunc(v.Values, after[at].Values, exact.Result.Equal) {
				changed++
			}
		}
		if changed == 0 {
			t.Errorf("%s: late events have not changed any vector", g.Name)
		}
		w.check(t, g, facts, append(w.times(facts, 100), times...), known)
	}
	if w.merged == 0 {
		t.Error("no vector is of several entities")
	}
	t.Logf("compared %d vectors, %d of them of several entities", w.compared, w.merged)
}

const yearOfTrade = 365 * 24 * time.Hour

// featuresConfig returns the configuration of a system that has tables of features, and writes many
// batches.
func featuresConfig(t *testing.T) config.Config {
	t.Helper()
	c := embeddedConfig(t)
	useEngine(t, &c)
	c.Features.CommitInterval = 50 * time.Millisecond
	return c
}

// useEngine makes a system use the embedded SQL engine.
func useEngine(t *testing.T, c *config.Config) {
	t.Helper()
	embedded, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.ClickHouse.Library = embedded.Library
}

// withoutViews returns the shop's modules without views, which the tests of features do not need.
func withoutViews() Modules {
	m := Shop()
	m.Views = nil
	return m
}

// trade sends commands and behaviour to a process, at random.
type trade struct {
	*App
	rnd       *rand.Rand
	commands  *client.Client
	now       time.Time     // the latest business time
	oldest    time.Duration // of business times, before now
	customers []string
	orders    map[string]*tradeOrder // that may change
	messages  int                    // of tracking clients
	joined    map[string]bool        // pairs of customers and links, by a text that names both

	compared, merged int
}

// newTrade returns a trade with a number of customers, and business times of the last month.
func newTrade(customers int) *trade {
	w := &trade{rnd: rand.New(rand.NewPCG(rand.Uint64(), 0)), oldest: 30 * 24 * time.Hour,
		now: time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond), orders: map[string]*tradeOrder{}}
	for range customers {
		w.customers = append(w.customers, uuid.NewString())
	}
	return w
}

// serve starts the process that everything is sent to from now on.
func (w *trade) serve(t *testing.T, c config.Config, roles ...Role) {
	t.Helper()
	w.App = startEmbedded(t, c, withoutViews(), roles...)
	w.commands = client.New(w.Addr(), time.Minute)
	t.Cleanup(w.commands.Close)
}

// tradeOrder is an order that was placed.
type tradeOrder struct {
	lines uint32
	at    time.Time
}

// at returns a random time: late, often recent, and often on an edge of a tile.
func (w *trade) at() time.Time {
	at := w.now.Add(-time.Duration(w.rnd.Int64N(int64(w.oldest))))
	switch w.rnd.IntN(6) {
	case 0:
		at = w.now.Add(-time.Duration(w.rnd.Int64N(int64(24 * time.Hour))))
	case 1:
		at = at.Truncate(time.Minute)
	case 2:
		at = at.Truncate(24 * time.Hour).Add(-time.Microsecond)
	}
	return at.Truncate(time.Microsecond)
}

func (w *trade) sku() string { return fmt.Sprintf("SKU %d", w.rnd.IntN(12)) }

func (w *trade) lines(currency string) (lines []*orderv1.NewLine) {
	for range 1 + w.rnd.IntN(5) {
		lines = append(lines, &orderv1.NewLine{
			Sku: w.sku(), Description: "d", Quantity: 1 + w.rnd.Int64N(20),
			UnitPrice: &money.Money{CurrencyCode: currency, Units: w.rnd.Int64N(50), Nanos: int32(w.rnd.IntN(100)) * 10_000_000},
		})
	}
	return lines
}

func (w *trade) send(t *testing.T, command proto.Message) {
	t.Helper()
	if _, err := w.commands.Send(t.Context(), command); err != nil {
		t.Fatalf("%T: %v", command, err)
	}
}

// sell sends n commands or a few more: orders, lines that are added to them, confirmations,
// cancellations, and movements of stock.
func (w *trade) sell(t *testing.T, n int) {
	t.Helper()
	for range n {
		var id string // of an order that may change
		for id = range w.orders {
			break
		}
		at := w.at()
		after := func(at time.Time) *timestamppb.Timestamp { // of something that happened after an order
			return timestamppb.New(at.Add(time.Duration(w.rnd.Int64N(int64(w.now.Sub(at)) + 1))))
		}
		switch k := w.rnd.IntN(20); {
		case k < 3 && id != "":
			o, lines := w.orders[id], w.lines("GBP")
			w.send(t, &orderv1.AddLinesRequest{OrderId: id, AfterLine: o.lines, Lines: lines, AddedAt: after(o.at)})
			o.lines += uint32(len(lines))
		case k < 6 && id != "":
			w.send(t, &orderv1.CancelOrderRequest{OrderId: id, Reason: "late", CancelledAt: after(w.orders[id].at)})
			delete(w.orders, id)
		case k < 7 && id != "":
			w.send(t, &orderv1.ConfirmOrderRequest{OrderId: id, ConfirmedAt: after(w.orders[id].at)})
			delete(w.orders, id)
		case k < 10:
			w.move(t, at)
		default:
			id = uuid.NewString()
			order := &orderv1.PlaceOrderRequest{OrderId: id, Currency: "GBP", OrderedAt: timestamppb.New(at),
				Country: []string{"GB", "FR", "DE"}[w.rnd.IntN(3)], CustomerId: &w.customers[w.rnd.IntN(len(w.customers))]}
			switch w.rnd.IntN(8) {
			case 0:
				order.CustomerId = nil // a guest
			case 1:
				order.Currency = "EUR"
			}
			if order.Lines = w.lines(order.Currency); order.Currency == "GBP" {
				w.orders[id] = &tradeOrder{uint32(len(order.Lines)), at}
			}
			w.send(t, order)
		}
	}
}

// move sends movements of stock. The business time of reservations is the present.
func (w *trade) move(t *testing.T, at time.Time) {
	t.Helper()
	sku := w.sku()
	w.send(t, &inventoryv1.ReceiveStockRequest{Sku: sku, Quantity: 10 + w.rnd.Int64N(90), ReceivedAt: timestamppb.New(at)})
	switch id := uuid.NewString(); w.rnd.IntN(3) {
	case 0:
		w.send(t, &inventoryv1.AdjustStockRequest{Sku: sku, Delta: -1 - w.rnd.Int64N(5), Reason: "broken",
			AdjustedAt: timestamppb.New(w.at())})
	case 1:
		w.send(t, &inventoryv1.ReserveStockRequest{Sku: sku, ReservationId: id, Quantity: 1 + w.rnd.Int64N(3),
			TimeToLive: durationpb.New(time.Hour)})
		if w.rnd.IntN(2) == 0 {
			w.send(t, &inventoryv1.CommitReservationRequest{Sku: sku, ReservationId: id})
		} else {
			w.send(t, &inventoryv1.ReleaseReservationRequest{Sku: sku, ReservationId: id})
		}
	}
}

// browse sends n events of visitors, and some of them twice.
func (w *trade) browse(t *testing.T, n int) {
	t.Helper()
	var events []string
	for range n {
		w.messages++
		properties := fmt.Sprintf(`{"sku": %q, "path": "/p/%d"}`, w.sku(), w.rnd.IntN(5))
		if w.rnd.IntN(4) == 0 {
			properties = fmt.Sprintf(`{"product_id": %d, "path": null}`, w.rnd.IntN(9))
		}
		what := `"type": "track", "event": "` + []string{"Product Viewed", "Product Viewed", "Product Added",
			"Products Searched", "Checkout Started", "Song Played"}[w.rnd.IntN(6)] + `"`
		switch w.rnd.IntN(10) {
		case 0:
			what = `"type": "identify", "traits": {}`
		case 1, 2:
			what = `"type": "page"`
		case 3, 4:
			what = fmt.Sprintf(`"type": "screen", "name": "Screen %d"`, w.rnd.IntN(4))
		}
		who := fmt.Sprintf(`"anonymousId": "visitor %d"`, w.rnd.IntN(8))
		if w.rnd.IntN(3) == 0 {
			who += `, "userId": "` + w.customers[w.rnd.IntN(3)] + `"`
		}
		events = append(events, fmt.Sprintf(`{"messageId": "m%d", %s, %s, "timestamp": %q, "properties": %s}`,
			w.messages, what, who, w.at().Format(time.RFC3339Nano), properties))
		if w.rnd.IntN(10) == 0 {
			events = append(events, events[w.rnd.IntN(len(events))])
		}
	}
	for batch := range slices.Chunk(events, 40) {
		body := `{"batch": [` + strings.Join(batch, ", ") + `]}`
		if status := track(t, w.App, "/v1/batch", tracking.DemoKey, body); status != http.StatusOK {
			t.Fatalf("the intake answered %d to %s", status, body)
		}
	}
}

// link merges and parts customers, and links visitors to them, n times.
func (w *trade) link(t *testing.T, n int) {
	t.Helper()
	if w.joined == nil {
		w.joined = map[string]bool{}
	}
	for range n {
		a := w.rnd.IntN(len(w.customers) - 1)
		one, other := w.customers[a], w.customers[a+1]
		visitor := w.rnd.IntN(8)
		pair, link := fmt.Sprint("merge ", a), fmt.Sprint("link ", visitor)
		// A browser belongs to one customer.
		owner := w.customers[visitor%len(w.customers)]
		ids := []*identityv1.IdentifierKey{{Kind: identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID,
			Value: fmt.Sprint("visitor ", visitor)}}
		switch k := w.rnd.IntN(2); {
		case k == 0 && w.joined[pair]:
			w.send(t, &identityv1.UnmergeCustomersRequest{CustomerId: one, OtherCustomerId: other})
			w.joined[pair] = false
		case k == 0:
			w.send(t, &identityv1.MergeCustomersRequest{CustomerId: one, OtherCustomerId: other})
			w.joined[pair] = true
		case w.joined[link]:
			w.send(t, &identityv1.UnlinkIdentifiersRequest{CustomerId: owner, Identifiers: ids})
			w.joined[link] = false
		default:
			w.send(t, &identityv1.LinkIdentifiersRequest{CustomerId: owner, Identifiers: ids})
			w.joined[link] = true
		}
	}
}

// catchUp waits until every path has everything, and returns the facts of the records of the log.
func (w *trade) catchUp(t *testing.T, groups []*features.Group) map[string][]features.Fact {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.CatchUp(ctx, func(string, int, int) {}); err != nil {
		t.Fatal(err)
	}
	ends, err := w.historyEnds(ctx)
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string][]features.Fact{}
	for topic, end := range ends {
		if err := w.vectors.Watermarks().WaitFor(ctx, topic, end); err != nil {
			t.Fatal(err)
		}
		sources := map[string]*features.Source{}
		if topic == persons.Source.Topic {
			sources[persons.Source.Name] = &persons.Source
		}
		for _, g := range groups {
			for i := range g.Sources {
				if s := &g.Sources[i]; s.Topic == topic {
					sources[s.Name] = s
				}
			}
		}
		err := kafka.ReadAll(ctx, w.kafka, topic, nil, end, func(m kafka.Message) error {
			if m.End {
				return nil
			}
			r := registry.Record{Topic: topic, Partition: m.Partition, Offset: m.Offset,
				Key: m.Key, Value: m.Value, Headers: m.Headers}
			e, err := w.decoder.Event(ctx, r)
			for name, s := range sources {
				some, failed := factfeed.Project(s, e, features.Origin{Topic: topic, Partition: m.Partition, Offset: m.Offset})
				facts[name], err = append(facts[name], some...), errors.Join(err, failed)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return facts
}

// times returns n times for each group: at random, and at and beside the edges of windows of facts.
func (w *trade) times(facts map[string][]features.Fact, n int) []time.Time {
	var all []features.Fact
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		all = append(all, facts[name]...)
	}
	edges := []features.Window{0, features.Hour, features.Day, features.Week, features.Month, features.Days90}
	times := make([]time.Time, n)
	for i := range times {
		if times[i] = w.at(); w.rnd.IntN(3) > 0 {
			edge := time.Duration(edges[w.rnd.IntN(len(edges))])
			times[i] = all[w.rnd.IntN(len(all))].At.Add(edge + time.Duration(w.rnd.IntN(3)-1)*time.Microsecond)
		}
	}
	return times
}

// check compares the vectors of all entities of a group at times, and returns those of the log.
// Features in memory are of the present knowledge only.
func (w *trade) check(t *testing.T, g *features.Group, facts map[string][]features.Fact, times []time.Time,
	known time.Time) map[pair]features.Vector {
	t.Helper()
	entities := append(sortedEntities(facts, g), "unknown")
	mine := map[string]map[string][]features.Fact{} // by entity and source: Evaluate takes its time for others
	for source, all := range facts {
		for _, f := range all {
			if mine[f.Entity] == nil {
				mine[f.Entity] = map[string][]features.Fact{}
			}
			mine[f.Entity][source] = append(mine[f.Entity][source], f)
		}
	}
	graph, err := personstest.Graph(facts[persons.Source.Name])
	if err != nil {
		t.Fatal(err)
	}
	members := map[string][]string{}
	for _, e := range entities {
		if members[e] = graph.Members(g.Identity, e, persons.KnownAt(known)); members[e] == nil {
			members[e] = []string{e}
		}
	}
	bySQL := vectorsBySQL(t, w.sql, g, times, known, members)
	ofPerson := map[string]map[string][]features.Fact{}
	for _, e := range entities {
		ofPerson[e] = map[string][]features.Fact{}
		for _, member := range members[e] {
			for source, all := range mine[member] {
				ofPerson[e][source] = append(ofPerson[e][source], all...)
			}
		}
	}
	inHistory, _, err := w.history.VectorsAt(t.Context(), g.ID(), entities, times, known)
	if err != nil {
		t.Fatal(err)
	}
	query, err := w.vectors.Store().Compile(g.Name)
	if err != nil {
		t.Fatal(err)
	}
	vectors := map[pair]features.Vector{}
	for n, at := range times {
		others := map[string][]features.Vector{"ClickHouse": inHistory[n]}
		if known.IsZero() {
			found, err := w.vectors.Store().Lookup(t.Context(), query, entities, at, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range found {
				others["memory"] = append(others["memory"],
					features.Vector{Entity: v.Entity, At: at, Found: v.Found, Values: v.Values})
			}
		}
		for _, e := range entities {
			v, ok := bySQL[pair{members[e][0], at.UnixMicro()}]
			if !ok {
				v = g.Vector(nil, e, at)
			}
			v.Entity = e
			others["lake SQL"] = append(others["lake SQL"], v)
		}
		for i, e := range entities {
			want := features.EvaluatePerson(g, ofPerson[e], e, members[e], at, known)
			if len(members[e]) > 1 {
				w.merged++
			}
			vectors[pair{e, at.UnixMicro()}] = want
			w.compared++
			for path, all := range others {
				compareVector(t, g, path, all[i], want)
			}
		}
	}
	return vectors
}

// compareVector fails the test if a vector is not the wanted one.
func compareVector(t *testing.T, g *features.Group, path string, have, want features.Vector) {
	t.Helper()
	if have.Entity != want.Entity || have.Found != want.Found {
		t.Fatalf("%s: %s at %s: %s has the vector of %s, found: %v; want %v", g.Name, want.Entity, want.At, path,
			have.Entity, have.Found, want.Found)
	}
	for i, o := range g.Outputs() {
		if !have.Values[i].Equal(want.Values[i]) {
			t.Fatalf("%s: %s of %s at %s: %s has %+v, and the log %+v", g.Name, o.Name, want.Entity,
				want.At.Format(time.RFC3339Nano), path, have.Values[i], want.Values[i])
		}
	}
}
