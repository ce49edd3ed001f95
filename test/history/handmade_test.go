package history

import (
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// TestStoreModel applies the model to histories that are small enough to judge by eye.
func TestStoreModel(t *testing.T) {
	t.Parallel()
	ids := make([]uuid.UUID, 9)
	for i := range ids {
		ids[i] = uuid.New()
	}
	// at makes an operation of a client at a time. The steps of the tables below are read from left
	// to right, then down.
	at := func(call, ret int64, c storeCall, a storeAnswer) storeOp {
		c.Shelf = "s"
		return storeOp{Call: call, Return: ret, Asked: c, Answer: a}
	}
	add := func(tag, key string, expected uint64, ids ...uuid.UUID) storeCall {
		return storeCall{Kind: appendBatch, Tag: tag, Key: key,
			Writes: []write{{Stream: 0, Expected: expected, IDs: ids}}}
	}
	both := func(tag string, first, second uint64, id, other uuid.UUID) storeCall {
		return storeCall{Kind: appendBatch, Tag: tag,
			Writes: []write{{0, first, []uuid.UUID{id}}, {1, second, []uuid.UUID{other}}}}
	}
	load := func(stream int, after uint64) storeCall {
		return storeCall{Kind: loadStream, Stream: stream, After: after}
	}
	saw := func(after uint64, ids ...uuid.UUID) storeAnswer {
		a := storeAnswer{Outcome: looked}
		for i, id := range ids {
			a.Events = append(a.Events, versioned{id, after + uint64(i) + 1})
		}
		return a
	}
	lookUp := func(key string) storeCall { return storeCall{Kind: lookUpKey, Key: key} }
	told := func(o outcome, tag string) storeAnswer { return storeAnswer{Outcome: o, Kept: kept{Tag: tag}} }
	ok, gone := storeAnswer{Outcome: stored}, storeAnswer{}
	busy := func(actual uint64) storeAnswer { return storeAnswer{Outcome: conflict, Actual: actual} }

	for _, c := range []struct {
		name  string
		legal bool
		ops   []storeOp
	}{
		{"one after the other", true, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, add("b", "", 1, ids[1], ids[2]), ok), at(5, 6,
				load(0, 0), saw(0, ids[0], ids[1], ids[2])),
			at(7, 8, load(0, 2), saw(2, ids[2])), at(9, 10, load(0, 7), saw(7)),
		}},
		{"of two at once one conflicts", true, []storeOp{
			at(1, 9, add("a", "", 0, ids[0]), busy(1)), at(2, 8, add("b", "", 0, ids[1]), ok), at(10, 11,
				load(0, 0), saw(0, ids[1])),
		}},
		{"of two at once both are stored", false, []storeOp{
			at(1, 9, add("a", "", 0, ids[0]), ok), at(2, 8, add("b", "", 0, ids[1]), ok),
		}},
		{"an acknowledged append is lost", false, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, load(0, 0), saw(0)),
		}},
		{"an acknowledged append is lost behind another", false, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, add("b", "", 1, ids[1]), ok), at(5, 6, load(0, 0),
				saw(0, ids[1])),
		}},
		{"an append is doubled", false, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, load(0, 0), saw(0, ids[0], ids[0])),
		}},
		{"the key of an append does not hold its second sending back", false, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, add("b", "k", 1, ids[1]), ok),
		}},
		{"a second sending hears of the first", true, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, add("b", "k", 0, ids[1]), told(answered, "a")), at(5,
				6, lookUp("k"), told(looked, "a")),
		}},
		{"a second sending hears of itself", false, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, add("b", "k", 0, ids[1]), told(answered, "b")),
		}},
		{"a second sending conflicts with the first", false, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, add("b", "k", 0, ids[1]), busy(1)),
		}},
		{"a stale read", false, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, add("b", "", 1, ids[1]), ok), at(5, 6, load(0, 0),
				saw(0, ids[0])),
		}},
		{"the same read while the append is under way", true, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 7, add("b", "", 1, ids[1]), ok), at(5, 6, load(0, 0),
				saw(0, ids[0])),
		}},
		{"two reads go back in time while the append is under way", false, []storeOp{
			at(1, 9, add("a", "", 0, ids[0]), ok), at(2, 3, load(0, 0), saw(0, ids[0])), at(4, 5, load(0, 0), saw(0)),
		}},
		{"a stale lookup", false, []storeOp{
			at(1, 2, add("a", "k", 0, ids[0]), ok), at(3, 4, lookUp("k"), told(looked, "")),
		}},
		{"a conflict where there is none", false, []storeOp{at(1, 2, add("a", "", 0, ids[0]), busy(1))}},
		{"a conflict that names a version of before", false, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, add("b", "", 1, ids[1]), ok), at(5, 6,
				add("c", "", 0, ids[2]), busy(1)),
		}},
		{"a conflict that was stored all the same", false, []storeOp{
			at(1, 2, add("a", "", 0, ids[0]), ok), at(3, 4, add("b", "", 0, ids[1]), busy(1)), at(5, 6,
				load(0, 0), saw(0, ids[0], ids[1])),
		}},
		{"half of a batch", false, []storeOp{
			at(1, 2, both("a", 0, 0, ids[0], ids[1]), ok), at(3, 4, load(0, 0), saw(0, ids[0])), at(5, 6,
				load(1, 0), saw(0)),
		}},
		{"half of a batch is seen before the other", false, []storeOp{
			at(1, 9, both("a", 0, 0, ids[0], ids[1]), ok), at(2, 3, load(0, 0), saw(0, ids[0])), at(4, 5,
				load(1, 0), saw(0)),
		}},
		{"a lost sending never takes effect", true, []storeOp{
			at(1, never, add("a", "", 0, ids[0]), gone), at(3, 4, load(0, 0), saw(0)),
		}},
		{"a lost sending takes effect late", true, []storeOp{
			at(1, never, add("a", "", 0, ids[0]), gone), at(3, 4, load(0, 0), saw(0)), at(5, 6, load(0, 0),
				saw(0, ids[0])),
		}},
		{"a lost sending takes effect before it is sent", false, []storeOp{
			at(1, 2, load(0, 0), saw(0, ids[0])), at(3, never, add("a", "", 0, ids[0]), gone),
		}},
		{"a lost sending is undone", false, []storeOp{
			at(1, never, add("a", "", 0, ids[0]), gone), at(3, 4, load(0, 0), saw(0, ids[0])), at(5, 6,
				load(0, 0), saw(0)),
		}},
		{"both sendings under a key take effect", false, []storeOp{
			at(1, never, add("a", "k", 0, ids[0]), gone), at(3, 4, add("b", "k", 1, ids[1]), ok), at(5, 6,
				load(0, 0), saw(0, ids[0], ids[1])),
		}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			findings := judge(shelves, storeOperations(c.ops), false)
			if legal := len(findings) == 0; legal != c.legal {
				t.Errorf("the model accepts it: %v, want %v", legal, c.legal)
			}
		})
	}
}

// TestStoreFindings breaks, one by one, the promises that one shelf alone does not show.
func TestStoreFindings(t *testing.T) {
	t.Parallel()
	type history = storeHistory
	for _, c := range []struct {
		want string
		harm func(*history)
	}{
		{"", func(*history) {}},
		{"is lost", func(h *history) { h.contents.all = h.contents.all[:2] }},
		{"stands twice", func(h *history) { h.contents.all[1].ID = h.contents.all[0].ID }},
		{"Read gives position", func(h *history) { h.contents.all[2].Position = event.Position{Sequence: 2} }},
		{"Read gives version", func(h *history) { h.contents.all[2].Version = 4 }},
		{"was told position", func(h *history) { h.operations[2].Answer.Position.Sequence = 9 }},
		{"was refused", func(h *history) { h.operations[2].Answer.Outcome = conflict }},
		{"of which clients sent", func(h *history) { h.operations = h.operations[:2] }},
		{"stands as version", func(h *history) { h.contents.all[0].Stream = "s/1" }},
		{"was called after", func(h *history) { h.operations[0], h.operations[2] = swapTimes(h.operations[0], h.operations[2]) }},
		{"is answered by", func(h *history) { h.contents.kept["k"] = kept{Tag: "another"} }},
		{"was answered", func(h *history) { h.operations[0].Answer.Kept = kept{Tag: "another"} }},
		{"names position", func(h *history) { h.contents.kept["k"] = kept{Tag: "0", Position: event.Position{Sequence: 3}} }},
		{"a follower from", func(h *history) { h.followers[0].saw = h.followers[0].saw[1:] }},
	} {
		h := history{contents: contents{kept: map[string]kept{"k": {Tag: "0",
			Position: event.Position{Sequence: 1}}}}, followers: make([]follower, 1)}
		for i := range uint64(3) {
			id, at := uuid.New(), event.Position{Sequence: i + 1}
			h.contents.all = append(h.contents.all, event.Event{ID: id, Stream: "s/0", Version: i + 1, Position: at})
			asked := storeCall{Kind: appendBatch, Shelf: "s", Tag: string('0' + rune(i)),
				Writes: []write{{0, i, []uuid.UUID{id}}}}
			h.operations = append(h.operations, storeOp{
				Call: int64(2*i + 1), Return: int64(2*i + 2), Asked: asked, Answer: storeAnswer{Outcome: stored,
					Position: at},
			})
			h.followers[0].saw = append(h.followers[0].saw, place{id, at})
		}
		h.operations[0].Asked.Key = "k"
		c.harm(&h)
		found := strings.Join(h.beyondShelves(), "\n")
		if (c.want == "" && found != "") || !strings.Contains(found, c.want) {
			t.Errorf("found %q, want %q", found, c.want)
		}
	}
}

func swapTimes(a, b storeOp) (storeOp, storeOp) {
	a.Call, a.Return, b.Call, b.Return = b.Call, b.Return, a.Call, a.Return
	return a, b
}

// TestStockModel is TestStoreModel for the stock of one SKU.
func TestStockModel(t *testing.T) {
	t.Parallel()
	at := func(call, ret int64, kind stockKind, key string, quantity int64, reservation string, a stockAnswer) stockOp {
		return stockOp{Call: call, Return: ret,
			Asked: stockCall{Kind: kind, SKU: "s", Key: key, Quantity: quantity, Reservation: reservation}, Answer: a}
	}
	ok := func(version uint64) stockAnswer { return stockAnswer{Outcome: stored, Version: version} }
	again := func(version uint64) stockAnswer { return stockAnswer{Outcome: replayed, Version: version} }
	no := func(rule string, onHand, reserved int64) stockAnswer {
		return stockAnswer{Outcome: refused, Rule: rule, OnHand: onHand, Reserved: reserved}
	}
	is := func(version uint64, onHand, reserved int64) stockAnswer {
		return stockAnswer{Outcome: looked, Version: version, OnHand: onHand, Reserved: reserved}
	}
	log := func(keys ...string) stockAnswer { return stockAnswer{Outcome: looked, Log: keys} }
	gone := stockAnswer{}
	five := at(1, 2, receive, "a", 5, "", ok(1)) // the beginning of most histories

	for _, c := range []struct {
		name  string
		legal bool
		ops   []stockOp
	}{
		{"a sale", true, []stockOp{
			at(0, 0, getNow, "", 0, "", no("stock_unknown", 0, 0)),
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 6, commit, "c", 0, "r", ok(3)), at(7, 8, getNow,
				"", 0, "", is(3, 2, 0)),
			at(9, 10, commit, "d", 0, "r", no("reservation_unknown", 0, 0)), at(11, 12, readLog, "", 0, "",
				log("a", "b", "c")),
		}},
		{"refusals with their numbers", true, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 6, reserve, "c", 3, "q", no("stock_insufficient", 5, 3)),
			at(7, 8, reserve, "d", 4, "r", no("reservation_differs", 5, 3)), at(9, 10, adjust, "e", -3, "",
				no("stock_reserved", 5, 3)),
			at(11, 12, adjust, "f", -6, "", no("stock_negative", 5, 3)), at(13, 14, release, "g", 0, "r", ok(3)),
			at(15, 16, adjust, "h", -5, "", ok(4)), at(17, 18, getNow, "", 0, "", is(4, 0, 0)),
		}},
		{"a reservation that is held is asked for again", true, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 6, reserve, "c", 3, "r", ok(2)), at(7, 8, reserve,
				"c", 3, "r", again(2)),
			at(9, 10, readLog, "", 0, "",
				stockAnswer{Outcome: looked, Log: []string{"a", "b"}, Answered: map[string]uint64{"c": 2}}),
		}},
		{"oversold one after the other", false, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 6, reserve, "c", 3, "q", ok(3)),
		}},
		{"oversold at once", false, []stockOp{
			five, at(3, 9, reserve, "b", 3, "r", ok(2)), at(4, 8, reserve, "c", 3, "q", ok(3)),
		}},
		{"oversold on one version", false, []stockOp{
			five, at(3, 9, reserve, "b", 3, "r", ok(2)), at(4, 8, reserve, "c", 3, "q", ok(2)),
		}},
		{"goods are taken twice", false, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 9, commit, "c", 0, "r", ok(3)), at(6, 8, commit,
				"d", 0, "r", ok(4)),
		}},
		{"committed and released", false, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 9, commit, "c", 0, "r", ok(3)), at(6, 8, release,
				"d", 0, "r", ok(4)),
		}},
		{"refused though there was enough", false, []stockOp{five, at(3, 4, reserve, "b", 3, "r", no("stock_insufficient", 5, 0))}},
		{"refused with the numbers of before", false, []stockOp{
			five, at(3, 4, reserve, "b", 3, "r", ok(2)), at(5, 6, reserve, "c", 9, "q", no("stock_insufficient", 5, 0)),
		}},
		{"an acknowledged command is lost", false, []stockOp{five, at(3, 4, receive, "b", 5, "", ok(2)), at(5, 6, getNow, "", 0, "", is(1, 5, 0))}},
		{"a key has two effects", false, []stockOp{five, at(3, 4, receive, "a", 5, "", ok(2))}},
		{"a command sent again is answered as it was", true, []stockOp{five, at(3, 4, receive, "a", 5, "", again(1))}},
		{"a command sent again is answered otherwise", false, []stockOp{five, at(3, 4, receive, "b", 5, "", ok(2)), at(5, 6, receive, "b", 5, "", again(1))}},
		{"replayed and never sent before", false, []stockOp{five, at(3, 4, receive, "b", 5, "", again(1))}},
		{"a lost sending, then refused, then in effect", true, []stockOp{
			five, at(3, never, reserve, "b", 5, "r", gone), at(5, 6, reserve, "b", 5, "r", again(2)),
			at(7, never, commit, "c", 0, "r", gone), at(8, 9, getNow, "", 0, "", is(2, 5, 5)), at(10, 11, getNow,
				"", 0, "", is(3, 0, 0)),
		}},
		{"a lost sending has two effects", false, []stockOp{
			five, at(3, never, receive, "b", 5, "", gone), at(5, 6, getNow, "", 0, "", is(2, 10, 0)), at(7, 8,
				getNow, "", 0, "", is(3, 15, 0)),
		}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			findings := judge(stocks, stockOperations(c.ops), false)
			if legal := len(findings) == 0; legal != c.legal {
				t.Errorf("the model accepts it: %v, want %v", legal, c.legal)
			}
		})
	}
}

// TestStockFindings breaks, one by one, the promises that the log shows directly or that one SKU
// alone does not show.
func TestStockFindings(t *testing.T) {
	t.Parallel()
	three := func(id string) *inventoryv1.StockEvent {
		return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Reserved{Reserved: &inventoryv1.StockReserved{ReservationId: id, Quantity: 3}}}
	}
	lapsed := &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationReleased{ReservationReleased: &inventoryv1.ReservationReleased{
		Quantity: 3, Cause: inventoryv1.ReleaseCause_RELEASE_CAUSE_EXPIRED,
	}}}
	sold := &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationCommitted{ReservationCommitted: &inventoryv1.ReservationCommitted{Quantity: 3}}}
	for _, c := range []struct {
		want string
		then *inventoryv1.StockEvent // the third event, after five arrived and three were reserved
		harm func(*stockHistory)
	}{
		{"", sold, func(*stockHistory) {}},
		{"oversold", three("q"), func(*stockHistory) {}},
		{"lapsed", lapsed, func(*stockHistory) {}},
		{"has two events", sold, func(h *stockHistory) { h.all[2].CausationID = "1" }},
		{"stands where", sold, func(h *stockHistory) { h.all[2].Version = 4 }},
		{"Read gives position", sold, func(h *stockHistory) { h.all[2].Position.Sequence = 2 }},
		{"one answer is", sold, func(h *stockHistory) {
			h.operations = append(h.operations, h.operations[1])
			h.operations[3].Answer.Expires = "later"
		}},
		{"the token names", sold, func(h *stockHistory) { h.operations[1].Answer.Version = 7 }},
		{"its event stands", sold, func(h *stockHistory) { h.all[1].Position.Sequence, h.all[2].Position.Sequence = 12, 13 }},
		{"the store keeps", sold, func(h *stockHistory) { delete(h.answers, "1") }},
		{"was first sent after", sold, func(h *stockHistory) { h.operations[0].Call, h.operations[0].Return = 50, 60 }},
	} {
		h := &stockHistory{answers: map[string]event.Token{}}
		arrived := &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Received{Received: &inventoryv1.StockReceived{Quantity: 5}}}
		for i, m := range []*inventoryv1.StockEvent{arrived, three("r"), c.then} {
			data, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			key, token := string('0'+rune(i)), event.Token{Service: "inventory", Stream: "s", Version: uint64(i) +
				1, Position: event.Position{Sequence: uint64(i) + 1}}
			h.all = append(h.all,
				event.Event{Stream: "s", Version: token.Version, Position: token.Position, CausationID: key,
					Data: data})
			h.answers[key] = token
			h.operations = append(h.operations, stockOp{
				Call: int64(2*i + 1), Return: int64(2*i + 2), Asked: stockCall{Kind: receive, SKU: "s", Key: key},
				Answer: stockAnswer{Outcome: stored, Version: token.Version, Token: token.String()},
			})
		}
		c.harm(h)
		found := strings.Join(h.beyondModel(), "\n")
		if (c.want == "" && found != "") || !strings.Contains(found, c.want) {
			t.Errorf("found %q, want %q", found, c.want)
		}
	}
}

// TestRejectedHistoryIsDrawn opens the file at the path in the finding.
func TestRejectedHistoryIsDrawn(t *testing.T) {
	t.Parallel()
	op := stockOp{Call: 1, Return: 2, Asked: stockCall{Kind: getNow, SKU: "s"},
		Answer: stockAnswer{Outcome: looked, Version: 1}}
	findings := judge(stocks, stockOperations([]stockOp{op}), true)
	if len(findings) != 1 {
		t.Fatalf("findings: %q", findings)
	}
	_, path, _ := strings.Cut(findings[0], "; drawn in ")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(page), "get s") {
		t.Error("the page does not show the operation")
	}
}
