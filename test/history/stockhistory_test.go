package history

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// stockHistory is the requests and answers of the inventory's clients, and the contents of its
// store at the end.
type stockHistory struct {
	operations []stockOp
	all        []event.Event          // Read, from the beginning
	answers    map[string]event.Token // by key
	last       int64                  // time of the last look
}

// readStore reads everything in the inventory's store.
func (h *stockHistory) readStore(ctx context.Context, s eventstore.Store) error {
	h.last, h.answers = moment(), map[string]event.Token{}
	for after := (event.Position{}); ; {
		some, err := s.Read(ctx, after, 1000)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		h.all, after = append(h.all, some...), some[len(some)-1].Position
	}
	for _, op := range h.operations {
		if _, known := h.answers[op.Asked.Key]; known || op.Asked.Key == "" {
			continue
		}
		a, ok, err := s.LoadAnswer(ctx, op.Asked.Key)
		if err != nil {
			return err
		}
		if ok {
			h.answers[op.Asked.Key] = event.Token{Service: event.Stock.Service, Stream: a.Stream,
				Version: a.Version, Position: a.Position}
		}
	}
	return nil
}

// check returns all findings against the history.
func (h *stockHistory) check(draw bool) []string {
	return append(judge(stocks, h.settled(), draw), h.beyondModel()...)
}

// beyondModel returns the findings that the log shows directly, or that one SKU alone cannot show.
func (h *stockHistory) beyondModel() []string {
	f := &stockFindings{stockHistory: h, made: map[string]event.Event{}}
	f.fold()
	f.answered()
	f.realTime()
	return f.found
}

// settled returns the history for the model: with the last look, and with the outcomes of lost
// sendings that it shows. Of the lost sendings under a key, the first may take effect whenever any
// of them may. So it represents all of them.
func (h *stockHistory) settled() []porcupine.Operation {
	accepted := map[string]bool{} // keys of commands that an answered sending accepted
	for _, op := range h.operations {
		if op.Answer.Outcome == stored {
			accepted[op.Asked.Key] = true
		}
	}
	var settled []stockOp
	byCall := slices.SortedFunc(slices.Values(h.operations),
		func(a, b stockOp) int { return cmp.Compare(a.Call, b.Call) })
	logs := map[string]stockAnswer{}
	for _, op := range byCall {
		logs[op.Asked.SKU] = stockAnswer{Outcome: looked}
		if op.Answer.Outcome == lost {
			kept, left := h.answers[op.Asked.Key]
			if !left || accepted[op.Asked.Key] {
				continue
			}
			accepted[op.Asked.Key] = true
			op.Answer.Outcome, op.Answer.Version, op.Return = stored, kept.Version, never
		}
		settled = append(settled, op)
	}
	eventOf := map[string]bool{}
	for _, e := range h.all {
		log := logs[e.Stream]
		log.Log = append(log.Log, e.CausationID)
		logs[e.Stream], eventOf[e.CausationID] = log, true
	}
	for key, kept := range h.answers {
		if log := logs[kept.Stream]; !eventOf[key] {
			log.Answered = with(log.Answered, key, kept.Version)
			logs[kept.Stream] = log
		}
	}
	for sku, log := range logs {
		settled = append(settled,
			stockOp{Asked: stockCall{Kind: readLog, SKU: sku}, Answer: log, Call: h.last, Return: never})
	}
	return stockOperations(settled)
}

func stockOperations(ops []stockOp) []porcupine.Operation {
	var all []porcupine.Operation
	for _, op := range ops {
		all = append(all,
			porcupine.Operation{ClientId: op.Client, Input: op.Asked, Output: op.Answer, Call: op.Call,
				Return: op.Return})
	}
	return all
}

// stockFindings collects the findings of beyondModel.
type stockFindings struct {
	*stockHistory
	made  map[string]event.Event // by key
	found []string
}

func (f *stockFindings) add(format string, args ...any) {
	f.found = append(f.found, fmt.Sprintf(format, args...))
}

// fold checks that no version of any stream oversells, that positions rise, that versions have no
// gaps, and that a key has one event.
func (f *stockFindings) fold() {
	type sums struct {
		version          uint64
		onHand, reserved int64
		arrived, sold    int64
	}
	streams := map[string]sums{}
	var last event.Position
	for _, e := range f.all {
		var m inventoryv1.StockEvent
		if err := proto.Unmarshal(e.Data, &m); err != nil {
			f.add("event %d of %s: %v", e.Version, e.Stream, err)
			continue
		}
		s := streams[e.Stream]
		switch m := m.GetEvent().(type) {
		case *inventoryv1.StockEvent_Received:
			s.onHand, s.arrived = s.onHand+m.Received.GetQuantity(), s.arrived+m.Received.GetQuantity()
		case *inventoryv1.StockEvent_Adjusted:
			s.onHand, s.arrived = s.onHand+m.Adjusted.GetDelta(), s.arrived+m.Adjusted.GetDelta()
		case *inventoryv1.StockEvent_Reserved:
			s.reserved += m.Reserved.GetQuantity()
		case *inventoryv1.StockEvent_ReservationCommitted:
			n := m.ReservationCommitted.GetQuantity()
			s.onHand, s.reserved, s.sold = s.onHand-n, s.reserved-n, s.sold+n
		case *inventoryv1.StockEvent_ReservationReleased:
			s.reserved -= m.ReservationReleased.GetQuantity()
			if m.ReservationReleased.GetCause() != inventoryv1.ReleaseCause_RELEASE_CAUSE_REQUESTED {
				f.add("version %d of %s: a reservation lapsed, which the model does not know", e.Version, e.Stream)
			}
		}
		if s.version++; e.Version != s.version {
			f.add("version %d of %s stands where %d should", e.Version, e.Stream, s.version)
		}
		if s.reserved < 0 || s.reserved > s.onHand || s.sold > s.arrived {
			f.add("oversold: at version %d of %s %d are reserved of %d on hand, %d sold of %d that arrived",
				e.Version, e.Stream, s.reserved, s.onHand, s.sold, s.arrived)
		}
		if e.Position.Compare(last) <= 0 {
			f.add("Read gives position %v after %v", e.Position, last)
		}
		if _, twice := f.made[e.CausationID]; twice {
			f.add("key %s has two events", e.CausationID)
		}
		streams[e.Stream], last, f.made[e.CausationID] = s, e.Position, e
	}
}

// answered checks that all answers under a key are equal, are what the store kept, and have tokens
// with the position of the event.
func (f *stockFindings) answered() {
	type receipt struct{ token, expires string }
	told := map[string]receipt{}
	for _, op := range f.operations {
		a, key := op.Answer, op.Asked.Key
		if a.Outcome != stored && a.Outcome != replayed {
			continue
		}
		r := receipt{a.Token, a.Expires}
		if first, again := told[key]; again && first != r {
			f.add("under key %s one answer is %+v and another %+v", key, first, r)
		}
		told[key] = r
		token, err := event.ParseToken(a.Token)
		if err != nil {
			f.add("key %s: %v", key, err)
			continue
		}
		if token.Version != a.Version || token.Stream != op.Asked.SKU {
			f.add("key %s: the token names version %d of %s, the receipt %d of %s", key, token.Version,
				token.Stream, a.Version, op.Asked.SKU)
		}
		e, made := f.made[key]
		if made && (e.Version != token.Version || e.Stream != token.Stream || e.Position != token.Position) {
			f.add("key %s: the token says %+v, its event stands as version %d of %s at %v", key, token, e.Version,
				e.Stream, e.Position)
		}
		kept, ok := f.answers[key]
		if !ok || kept.Version != token.Version || (made && kept != token) {
			f.add("key %s was answered %+v, the store keeps %+v", key, token, kept)
		}
	}
}

// realTime checks across SKUs that a command sent after an answer has a later position.
func (f *stockFindings) realTime() {
	told := slices.DeleteFunc(slices.Clone(f.operations),
		func(op stockOp) bool { return op.Answer.Outcome != stored && op.Answer.Outcome != replayed })
	slices.SortFunc(told, func(a, b stockOp) int { return cmp.Compare(a.Return, b.Return) })
	firstCall := map[string]int64{}
	for _, op := range f.operations {
		if c, known := firstCall[op.Asked.Key]; !known || op.Call < c {
			firstCall[op.Asked.Key] = op.Call
		}
	}
	sent := slices.SortedFunc(func(yield func(string) bool) {
		for key := range f.made {
			if !yield(key) {
				return
			}
		}
	}, func(a, b string) int { return cmp.Compare(firstCall[a], firstCall[b]) })
	var before event.Position
	for _, key := range sent {
		for len(told) > 0 && told[0].Return < firstCall[key] {
			if p := f.made[told[0].Asked.Key].Position; p.Compare(before) > 0 {
				before = p
			}
			told = told[1:]
		}
		if p := f.made[key].Position; p.Compare(before) <= 0 {
			f.add("the command under key %s was first sent after position %v was told, and stands at %v", key,
				before, p)
		}
	}
}
