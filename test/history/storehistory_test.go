package history

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// storeHistory is the requests and answers of an event store's clients, what its followers saw, and
// the contents at the end.
type storeHistory struct {
	operations []storeOp
	followers  []follower
	contents   contents
}

// follower is what one follower saw, in order, after a position.
type follower struct {
	after event.Position
	saw   []place
}

// place is the position of an event.
type place struct {
	ID       uuid.UUID
	Position event.Position
}

// contents is the contents of a store after its clients have ended.
type contents struct {
	all  []event.Event   // Read, from the beginning
	kept map[string]kept // by key, for every key that was ever used
	last []storeOp       // loads of all streams and lookups of all keys
}

// readContents reads everything that a store has of a history's streams and keys.
func readContents(ctx context.Context, s eventstore.Store, operations []storeOp) (contents, error) {
	c := contents{kept: map[string]kept{}}
	for after := (event.Position{}); ; {
		some, err := s.Read(ctx, after, 1000)
		if err != nil {
			return c, err
		}
		if len(some) == 0 {
			break
		}
		c.all, after = append(c.all, some...), some[len(some)-1].Position
	}
	shelves, keys := map[string]bool{}, map[string]string{}
	for _, op := range operations {
		shelves[op.Asked.Shelf] = true
		if op.Asked.Key != "" {
			keys[op.Asked.Key] = op.Asked.Shelf
		}
	}
	look := func(asked storeCall) (storeAnswer, error) {
		op := storeOp{ID: fmt.Sprint("last ", len(c.last)), Asked: asked, Call: moment()}
		err := perform(ctx, s, &op)
		op.Return = moment()
		c.last = append(c.last, op)
		return op.Answer, err
	}
	for shelf := range shelves {
		for stream := range 2 {
			if _, err := look(storeCall{Kind: loadStream, Shelf: shelf, Stream: stream}); err != nil {
				return c, err
			}
		}
	}
	for key, shelf := range keys {
		a, err := look(storeCall{Kind: lookUpKey, Shelf: shelf, Key: key})
		if err != nil {
			return c, err
		}
		if a.Kept.Tag != "" {
			c.kept[key] = a.Kept
		}
	}
	return c, nil
}

// check returns all findings against the history.
func (h storeHistory) check(draw bool) []string {
	return append(judge(shelves, h.settled(), draw), h.beyondShelves()...)
}

// beyondShelves returns the findings that one shelf alone cannot show.
func (h storeHistory) beyondShelves() []string {
	f := &storeFindings{storeHistory: h, at: map[uuid.UUID]event.Event{}}
	f.readAll()
	f.acknowledged()
	f.keys()
	f.realTime()
	f.followed()
	return f.found
}

// settled returns the history for the model. Lost sendings have the outcome that the store's
// contents show. The package documentation explains why this changes no verdict.
func (h storeHistory) settled() []porcupine.Operation {
	present := map[uuid.UUID]bool{}
	for _, e := range h.contents.all {
		present[e.ID] = true
	}
	var settled []storeOp
	for _, op := range slices.Concat(h.operations, h.contents.last) {
		if op.Answer.Outcome == lost {
			if op.Asked.Kind != appendBatch || !h.left(op.Asked, present) {
				continue
			}
			op.Answer.Outcome, op.Return = stored, never
		}
		settled = append(settled, op)
	}
	return storeOperations(settled)
}

func storeOperations(ops []storeOp) []porcupine.Operation {
	var all []porcupine.Operation
	for _, op := range ops {
		all = append(all,
			porcupine.Operation{ClientId: op.Client, Input: op.Asked, Output: op.Answer, Call: op.Call,
				Return: op.Return})
	}
	return all
}

// left reports whether a sending left anything in the store.
func (h storeHistory) left(c storeCall, present map[uuid.UUID]bool) bool {
	for _, w := range c.Writes {
		if slices.ContainsFunc(w.IDs, func(id uuid.UUID) bool { return present[id] }) {
			return true
		}
	}
	return c.Key != "" && h.contents.kept[c.Key].Tag == c.Tag
}

// storeFindings collects the findings of beyondShelves.
type storeFindings struct {
	storeHistory
	at    map[uuid.UUID]event.Event
	found []string
}

func (f *storeFindings) add(format string, args ...any) {
	f.found = append(f.found, fmt.Sprintf(format, args...))
}

// readAll checks that Read returns each event once, in rising positions, and each stream without
// gaps and as Load returns it.
func (f *storeFindings) readAll() {
	var last event.Position
	streams := map[string]uint64{}
	for _, e := range f.contents.all {
		if e.Position.Compare(last) <= 0 {
			f.add("Read gives position %v after %v", e.Position, last)
		}
		if streams[e.Stream]++; e.Version != streams[e.Stream] {
			f.add("Read gives version %d of %s where %d should follow", e.Version, e.Stream, streams[e.Stream])
		}
		if _, twice := f.at[e.ID]; twice {
			f.add("event %s stands twice in Read", short(e.ID))
		}
		last, f.at[e.ID] = e.Position, e
	}
	for _, op := range f.contents.last {
		name := streamName(op.Asked.Shelf, op.Asked.Stream)
		if op.Asked.Kind == loadStream && uint64(len(op.Answer.Events)) != streams[name] {
			f.add("Load gives %d events of %s, Read %d", len(op.Answer.Events), name, streams[name])
		}
	}
}

// acknowledged checks that stored batches are complete and where their answers said, and that the
// store contains nothing else.
func (f *storeFindings) acknowledged() {
	known := 0
	for _, op := range f.operations {
		there := 0
		for _, w := range op.Asked.Writes {
			for i, id := range w.IDs {
				e, ok := f.at[id]
				if !ok {
					continue
				}
				there++
				if e.Stream != streamName(op.Asked.Shelf, w.Stream) || e.Version != w.Expected+uint64(i)+1 {
					f.add("event %s of %s stands as version %d of %s", short(id), op.Asked.Tag, e.Version, e.Stream)
				}
			}
		}
		known += there
		whole := op.Asked.events()
		switch o := op.Answer.Outcome; {
		case there != 0 && there != whole:
			f.add("of the %d events of %s (%s) %d are there", whole, op.Asked.Tag, o, there)
		case o == stored && there != whole:
			f.add("%s was acknowledged and is lost", op.Asked.Tag)
		case o == stored && whole > 0 && f.end(op.Asked) != op.Answer.Position:
			f.add("%s was told position %v and ends at %v", op.Asked.Tag, op.Answer.Position, f.end(op.Asked))
		case (o == conflict || o == answered) && there > 0:
			f.add("%s was refused (%s) and is stored", op.Asked.Tag, o)
		}
	}
	if known != len(f.contents.all) {
		f.add("the store has %d events, of which clients sent %d", len(f.contents.all), known)
	}
}

// events returns the number of events of a batch.
func (c storeCall) events() (n int) {
	for _, w := range c.Writes {
		n += len(w.IDs)
	}
	return n
}

// end returns the position of a batch's last event.
func (f *storeFindings) end(c storeCall) (last event.Position) {
	for _, w := range c.Writes {
		for _, id := range w.IDs {
			if p := f.at[id].Position; p.Compare(last) > 0 {
				last = p
			}
		}
	}
	return last
}

// keys checks that all answers under a key are equal, and have the position of the sending that was
// stored.
func (f *storeFindings) keys() {
	for _, op := range f.operations {
		told, now := op.Answer.Kept, f.contents.kept[op.Asked.Key]
		if told.Tag != "" && told != now {
			f.add("key %s was answered %+v and is %+v at the end", op.Asked.Key, told, now)
		}
		if op.Asked.Kind != appendBatch || op.Asked.Key == "" || op.Asked.events() == 0 {
			continue
		}
		if end := f.end(op.Asked); now.Tag == op.Asked.Tag && end != now.Position {
			f.add("the answer under key %s names position %v, its events end at %v", op.Asked.Key, now.Position, end)
		} else if now.Tag != op.Asked.Tag && !end.IsZero() {
			f.add("%s is stored, and its key %s is answered by %q", op.Asked.Tag, op.Asked.Key, now.Tag)
		}
	}
}

// realTime checks that a call after an answer has a later position than that answer.
func (f *storeFindings) realTime() {
	told := slices.DeleteFunc(slices.Clone(f.operations), func(op storeOp) bool { return op.Answer.Outcome != stored })
	slices.SortFunc(told, func(a, b storeOp) int { return cmp.Compare(a.Return, b.Return) })
	called := slices.SortedFunc(slices.Values(f.operations),
		func(a, b storeOp) int { return cmp.Compare(a.Call, b.Call) })
	var before event.Position // the highest position in an answer before the current call
	for _, op := range called {
		for len(told) > 0 && told[0].Return < op.Call {
			if p := told[0].Answer.Position; p.Compare(before) > 0 {
				before = p
			}
			told = told[1:]
		}
		for _, w := range op.Asked.Writes {
			for _, id := range w.IDs {
				if e, ok := f.at[id]; ok && e.Position.Compare(before) <= 0 {
					f.add("%s was called after position %v was told, and stands at %v", op.Asked.Tag, before,
						e.Position)
				}
			}
		}
		if op.Answer.Outcome == stored && op.Asked.events() == 0 && op.Answer.Position.Compare(before) < 0 {
			f.add("%s was called after position %v was told, and was told %v", op.Asked.Tag, before, op.Answer.Position)
		}
	}
}

// followed checks that a follower from a position on has seen exactly what Read now returns from
// there, as far as it came.
func (f *storeFindings) followed() {
	for _, follower := range f.followers {
		rest := f.contents.all
		for len(rest) > 0 && rest[0].Position.Compare(follower.after) <= 0 {
			rest = rest[1:]
		}
		for i, p := range follower.saw {
			if i >= len(rest) || rest[i].ID != p.ID || rest[i].Position != p.Position {
				f.add("a follower from %v on saw event %s at %v as number %d, where the store now has something else", follower.after, short(p.ID), p.Position, i+1)
				break
			}
		}
	}
}
