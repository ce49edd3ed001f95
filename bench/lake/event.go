package main

import (
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// event is a record of the benchmark: the message Event of flat.proto. It resembles a click in a
// shop: short texts from small sets, which compress well, and random numbers, which do not.
type event struct {
	ID, Customer int64
	Type, SKU    string
	Qty          int32
	Price        float64
	Currency     string
	Country      string
	Device       string
	New          bool
	At           int64 // milliseconds since 1970
	Session      int64
	Page         string
}

var (
	types      = []string{"view", "product", "search", "cart", "checkout", "purchase", "review", "wish"}
	currencies = []string{"EUR", "EUR", "EUR", "USD", "GBP", "SEK"}
	countries  = []string{"DE", "FR", "NL", "AT", "BE", "ES", "IT", "PL", "SE", "US", "GB", "IE", "CH", "DK", "CZ", "PT"}
	devices    = []string{"mobile", "desktop", "tablet"}
	firstAt    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
)

// eventAt returns the i-th event. All values follow from i, so a table can be checked without a
// copy of the input.
func eventAt(i int64) event {
	// draw returns a number below n that depends on r, and mixes r for the next one.
	r := random(i)
	draw := func(n uint64) uint64 {
		v := r % n
		r = (r/n ^ r<<17) * 0x9e3779b97f4a7c15
		r ^= r >> 29
		return v
	}
	pick := func(of []string) string { return of[draw(uint64(len(of)))] }
	sku := strconv.FormatUint(10_000+draw(5_000), 10)
	return event{
		ID: i, Customer: int64(draw(1_000_000)), Type: pick(types), SKU: sku, Qty: int32(draw(9)),
		Price: float64(draw(10_000)) / 100, Currency: pick(currencies), Country: pick(countries), Device: pick(devices),
		New: draw(2) == 0, At: firstAt + 3*i + int64(draw(3)), Session: int64(draw(1 << 40)), Page: "/product/" + sku,
	}
}

// random returns the i-th number of SplitMix64.
func random(i int64) uint64 {
	z := uint64(i+1) * 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// appendProtobuf appends the event as a message of flat.proto. Zero values are omitted.
func (e event) appendProtobuf(b []byte) []byte {
	number := func(field protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
		}
	}
	text := func(field protowire.Number, v string) {
		if v != "" {
			b = protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
		}
	}
	number(1, uint64(e.ID))
	number(2, uint64(e.Customer))
	text(3, e.Type)
	text(4, e.SKU)
	number(5, uint64(e.Qty))
	if e.Price != 0 {
		b = protowire.AppendFixed64(protowire.AppendTag(b, 6, protowire.Fixed64Type), math.Float64bits(e.Price))
	}
	text(7, e.Currency)
	text(8, e.Country)
	text(9, e.Device)
	number(10, protowire.EncodeBool(e.New))
	// The time is a nested google.protobuf.Timestamp, which is encoded first because its length
	// precedes it.
	var room [24]byte
	at := protowire.AppendVarint(protowire.AppendTag(room[:0], 1, protowire.VarintType), uint64(e.At/1000))
	if nanos := e.At % 1000 * 1_000_000; nanos != 0 {
		at = protowire.AppendVarint(protowire.AppendTag(at, 2, protowire.VarintType), uint64(nanos))
	}
	b = protowire.AppendBytes(protowire.AppendTag(b, 11, protowire.BytesType), at)
	number(12, uint64(e.Session))
	text(13, e.Page)
	return b
}

// appendJSON appends the event as a JSON object. The time is a number of milliseconds, which is the
// cheapest form for the sink.
func (e event) appendJSON(b []byte) []byte {
	number := func(name string, v int64) { b = strconv.AppendInt(append(b, name...), v, 10) }
	// No value needs escaping.
	text := func(name, v string) { b = append(append(append(b, name...), v...), '"') }
	number(`{"id":`, e.ID)
	number(`,"customer":`, e.Customer)
	text(`,"type":"`, e.Type)
	text(`,"sku":"`, e.SKU)
	number(`,"qty":`, int64(e.Qty))
	b = strconv.AppendFloat(append(b, `,"price":`...), e.Price, 'f', 2, 64)
	text(`,"currency":"`, e.Currency)
	text(`,"country":"`, e.Country)
	text(`,"device":"`, e.Device)
	b = strconv.AppendBool(append(b, `,"new":`...), e.New)
	number(`,"at":`, e.At)
	number(`,"session":`, e.Session)
	text(`,"page":"`, e.Page)
	return append(b, '}')
}
