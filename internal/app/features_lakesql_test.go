package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// This file computes vectors by SQL over the lake's tables of events, for TestVectorsAgree. It shares
// no code with the sources and the stores of features: the facts are SELECTs over the columns of
// the raw events, and SQL selects the current versions, the windows and the conditions, and counts,
// adds up and compares the values. SQL returns the values for distinct, top and quantile as lists,
// because its own functions for these differ. Go puts them into an exact.State, and rounds.

// orderRows has the columns that the three events of an order with facts have in common.
var orderRows = func() string {
	of := func(field, absent string) string {
		return "multiIf(type LIKE '%.OrderPlaced', placed." + field + ", type LIKE '%.LinesAdded', lines_added." + field +
			", " + absent + ") AS " + field
	}
	all := func(field string) string { return of(field, "cancelled."+field) }
	return "SELECT aggregate_id AS id, version, toUnixTimestamp64Micro(recorded_at) AS known, " +
		"type LIKE '%.OrderCancelled' AS retracted, type LIKE '%.OrderPlaced' AS is_placed, retracted AS is_cancelled, cancelled.cancelled_at AS cancelled_at, " +
		strings.Join([]string{all("customer_id"), all("currency"), all("country"), all("ordered_at"), all("lines"),
			of("total", "0")}, ", ") +
		" FROM orders_events WHERE type NOT LIKE '%.OrderConfirmed'"
}()

// lineValues are the last columns of facts about order lines.
const lineValues = "toInt256(l.quantity) AS quantity, toInt256(l.unit_price * 1000000000) AS unit_price, " +
	"quantity * unit_price AS amount, currency"

// orderedAt is the time of most facts about orders.
const orderedAt = "toUnixTimestamp64Micro(assumeNotNull(ordered_at)) AS at"

// factRows are the facts of each source, with all versions. A text that is null is empty.
var factRows = map[string]string{
	"customer_orders": "SELECT assumeNotNull(customer_id) AS entity, id AS key, " + orderedAt + ", known, version, retracted, " +
		"toInt256(total * 1000000000) AS total, currency, country, toInt256(lines[-1].number) AS lines " +
		"FROM (" + orderRows + ") WHERE ifNull(customer_id, '') != ''",
	"customer_order_lines": "SELECT assumeNotNull(customer_id) AS entity, concat(id, '/', toString(l.number)) AS key, " +
		orderedAt + ", known, version, retracted, l.sku AS sku, " + lineValues +
		" FROM (" + orderRows + ") ARRAY JOIN lines AS l WHERE ifNull(customer_id, '') != ''",
	"product_order_lines": "SELECT l.sku AS entity, concat(id, '/', toString(l.number)) AS key, " +
		orderedAt + ", known, version, retracted, id AS order_id, customer_id, " + lineValues +
		" FROM (" + orderRows + ") ARRAY JOIN lines AS l",
	"customer_cancellations": "SELECT assumeNotNull(customer_id) AS entity, id AS key, " +
		"toUnixTimestamp64Micro(assumeNotNull(cancelled_at)) AS at, known, version, 0 AS retracted, country " +
		"FROM (" + orderRows + ") WHERE is_cancelled AND ifNull(customer_id, '') != ''",
	"basket_pairs": "SELECT sku AS entity, concat(id, '/', other) AS key, at, known, version, retracted, other AS with_sku " +
		"FROM (SELECT id, known, version, retracted, " + orderedAt + ", " +
		"arraySlice(arrayDistinct(arrayMap(l -> l.sku, lines)), 1, 16) AS skus, arrayJoin(skus) AS sku " +
		"FROM (" + orderRows + ") WHERE is_placed OR retracted) ARRAY JOIN skus AS other WHERE sku != other",
	"stock_movements": "SELECT aggregate_id AS entity, toString(version) AS key, toUnixTimestamp64Micro(occurred_at) AS at, " +
		"toUnixTimestamp64Micro(recorded_at) AS known, version, 0 AS retracted, " +
		"multiIf(type LIKE '%.StockReceived', 'received', type LIKE '%.StockAdjusted', 'adjusted', " +
		"type LIKE '%.StockReserved', 'reserved', type LIKE '%.ReservationCommitted', 'committed', 'released') AS movement, " +
		"toInt256(multiIf(movement = 'received', received.quantity, movement = 'adjusted', adjusted.delta, " +
		"movement = 'committed', -reservation_committed.quantity, 0)) AS on_hand_change, " +
		"toInt256(multiIf(movement = 'reserved', reserved.quantity, movement = 'committed', -reservation_committed.quantity, " +
		"movement = 'released', -reservation_released.quantity, 0)) AS reserved_change FROM stock_events",
	"visitor_actions": "SELECT if(ifNull(user_id, '') != '', user_id, anonymous_id) AS entity, event_id AS key, " +
		"toUnixTimestamp64Micro(assumeNotNull(timestamp)) AS at, toUnixTimestamp64Micro(assumeNotNull(received_at)) AS known, " +
		"known AS version, 0 AS retracted, multiIf(type IN ('page', 'screen'), 'page_view', event = 'Product Viewed', 'product_view', " +
		"event = 'Product Added', 'add_to_cart', event = 'Product Removed', 'remove_from_cart', " +
		"event = 'Products Searched', 'search', event = 'Checkout Started', 'checkout', event = 'Order Completed', 'purchase', " +
		"'other') AS action, multiIf(action != 'page_view', '', name != '', name, JSONExtractString(properties, 'path')) AS page, " +
		"multiIf(action NOT IN ('product_view', 'add_to_cart', 'remove_from_cart'), '', JSONExtractString(properties, 'sku') != '', " +
		"JSONExtractString(properties, 'sku'), trim(BOTH '\"' FROM JSONExtractRaw(properties, 'product_id'))) AS sku, " +
		"source AS site FROM behavior_events WHERE type IN ('track', 'page', 'screen') AND NOT has(reduced_for, 'analytics')",
}

// sqlPart is an aggregate of one source that SQL computes: a feature or its divisor over a window.
type sqlPart struct {
	feature *features.Feature
	window  features.Window
}

// sqlParts returns the parts of a group's outputs that are of a source, in a fixed order.
func sqlParts(g *features.Group, source string) (parts []sqlPart) {
	for _, o := range g.Outputs() {
		for i := range g.States(o) {
			if f := features.Part(o.Feature, i); f.Source == source {
				parts = append(parts, sqlPart{f, o.Window})
			}
		}
	}
	return parts
}

// expression returns an array of texts: how many values there are, and what state needs besides.
func (p sqlPart) expression(t *testing.T, g *features.Group) string {
	f, column := p.feature, "v_"+p.feature.Column
	in := []string{"1"}
	if p.window != features.Lifetime {
		in = append(in, fmt.Sprintf("at > t - %d", time.Duration(p.window).Microseconds()))
	}
	for _, c := range f.Where {
		if c.Op != features.Equal || c.Value.Kind != exact.Text {
			t.Fatalf("feature %s: SQL for the condition %s is missing in this test", f.Name, c.Op)
		}
		in = append(in, "v_"+c.Column+" = '"+c.Value.Text+"'")
	}
	if c, ok := g.Column(f.Source, f.Column); ok && c.Kind == exact.Text {
		in = append(in, column+" != ''") // null
	}
	where := strings.Join(in, " AND ")
	fields := []string{"countIf(" + where + ")"}
	of := func(format string) { fields = append(fields, fmt.Sprintf(format, column, where)) }
	list := ""
	switch a := f.Aggregate; {
	case f.Age && a == exact.First:
		fields = append(fields, "minIf(at, "+where+")")
	case f.Age:
		fields = append(fields, "maxIf(at, "+where+")")
	case a == exact.Count:
	case a == exact.Sum, a == exact.Mean:
		of("sumIf(%s, %s)")
	case a == exact.StdDev:
		of("sumIf(%s, %s)")
		of("sumIf(%[1]s * %[1]s, %[2]s)")
	case a == exact.Min:
		of("minIf(%s, %s)")
	case a == exact.Max:
		of("maxIf(%s, %s)")
	case a == exact.First:
		of("argMinIf(%s, (at, key), %s)")
	case a == exact.Last:
		of("argMaxIf(%s, (at, key), %s)")
	case a == exact.Distinct:
		list = "groupUniqArrayIf(toString(" + column + "), " + where + ")"
	default: // Top, Quantile
		list = "groupArrayIf(toString(" + column + "), " + where + ")"
	}
	for i := range fields {
		fields[i] = "toString(" + fields[i] + ")"
	}
	array := "[" + strings.Join(fields, ", ") + "]"
	if list != "" {
		array = "arrayConcat(" + array + ", " + list + ")"
	}
	return array
}

// state returns the state that an answer of expression stands for.
func (p sqlPart) state(t *testing.T, g *features.Group, answer []string) exact.State {
	t.Helper()
	s := exact.State{Aggregate: p.feature.Aggregate}
	column, _ := g.Column(p.feature.Source, p.feature.Column)
	value := func(text string) exact.Value {
		if column.Kind == exact.Text {
			return exact.TextValue(text)
		}
		b, ok := new(big.Int).SetString(text, 10)
		n, err := exact.FromBig(b)
		if !ok || err != nil {
			t.Fatalf("SQL returned %q for %s", text, p.feature.Name)
		}
		return exact.IntValue(n)
	}
	var err error
	if s.Count, err = strconv.ParseInt(answer[0], 10, 64); err != nil {
		t.Fatal(err)
	}
	if s.Count == 0 || len(answer) == 1 {
		return s
	}
	switch a := p.feature.Aggregate; {
	case p.feature.Age:
		s.Pick.Stamp.At, _ = value(answer[1]).Int.Int64()
	case a == exact.First, a == exact.Last:
		s.Pick.Value = value(answer[1])
	case a == exact.Sum, a == exact.Mean:
		s.Sum = value(answer[1]).Int
	case a == exact.StdDev:
		s.Sum, s.Squares = value(answer[1]).Int, value(answer[2]).Int
	case a == exact.Min:
		s.Min = value(answer[1]).Int
	case a == exact.Max:
		s.Max = value(answer[1]).Int
	default: // lists
		s.Count = 0
		for _, text := range answer[1:] {
			s.Add(exact.Stamp{}, value(text))
		}
	}
	return s
}

// vectorsBySQL returns a group's vectors of all entities at times, by lake SQL. An entity that has no
// facts at a time has no vector. A zero known means that everything is known. Entities that are one
// person have one vector, under the first of their members.
func vectorsBySQL(t *testing.T, q *lakesql.SQL, g *features.Group, times []time.Time, known time.Time,
	members map[string][]string) map[pair]features.Vector {
	t.Helper()
	person, from, to := "e", []string{}, []string{}
	for e, all := range members {
		if len(all) > 1 {
			from, to = append(from, "'"+e+"'"), append(to, "'"+all[0]+"'")
		}
	}
	if len(from) > 0 {
		person = "transform(e, [" + strings.Join(from, ", ") + "], [" + strings.Join(to, ", ") + "], e)"
	}
	micros := make([]string, len(times))
	for i, at := range times {
		micros[i] = strconv.FormatInt(at.UnixMicro(), 10)
	}
	states := map[pair]map[sqlPart]exact.State{}
	for i := range g.Sources {
		s := &g.Sources[i]
		parts := sqlParts(g, s.Name)
		expressions := make([]string, len(parts))
		for j, p := range parts {
			expressions[j] = p.expression(t, g)
		}
		columns, renamed := "", ""
		for j, c := range s.Columns {
			columns += ", ifNull(" + c.Name + ", " + map[exact.Kind]string{exact.Text: "''", exact.Number: "0"}[c.Kind] + ")"
			renamed += fmt.Sprintf(", f.%d AS v_%s", j+3, c.Name)
		}
		upto := ""
		if !known.IsZero() {
			upto = fmt.Sprintf(" WHERE known <= %d", known.UnixMicro())
		}
		query := "SELECT entity, t, [" + strings.Join(expressions, ", ") + "] AS parts FROM (" +
			"SELECT " + person + " AS entity, concat(k, char(0), e) AS key, f.1 AS at" + renamed +
			" FROM (SELECT entity AS e, key AS k, argMax((at, retracted" + columns +
			"), version) AS f FROM (" + factRows[s.Name] + ")" + upto + " GROUP BY entity, key) WHERE NOT f.2) AS facts " +
			"CROSS JOIN (SELECT arrayJoin(arrayDistinct([" + strings.Join(micros, ", ") + "])) AS t) AS times WHERE at <= t GROUP BY entity, t"
		answer, err := q.Run(t.Context(), query, lakesql.FormatJSON)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		for rows := json.NewDecoder(answer); ; {
			var row struct {
				Entity string
				T      int64
				Parts  [][]string
			}
			if err := rows.Decode(&row); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", s.Name, err)
			}
			at := pair{row.Entity, row.T}
			if states[at] == nil {
				states[at] = map[sqlPart]exact.State{}
			}
			for j, p := range parts {
				states[at][p] = p.state(t, g, row.Parts[j])
			}
		}
		if err := answer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	vectors := make(map[pair]features.Vector, len(states))
	for at, have := range states {
		v := features.Vector{Entity: at.entity, At: time.UnixMicro(at.t).UTC(), Found: true}
		for _, o := range g.Outputs() {
			both := g.States(o) // empty, if the source has no facts
			for i := range both {
				if s, ok := have[sqlPart{features.Part(o.Feature, i), o.Window}]; ok {
					both[i] = s
				}
			}
			v.Values = append(v.Values, g.Result(o, both, v.At))
		}
		vectors[at] = v
	}
	return vectors
}

// pair is an entity and a time, in microseconds.
type pair struct {
	entity string
	t      int64
}

// sortedEntities returns the entities that facts are about, in order.
func sortedEntities(facts map[string][]features.Fact, g *features.Group) (all []string) {
	for i := range g.Sources {
		for _, f := range facts[g.Sources[i].Name] {
			all = append(all, f.Entity)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
