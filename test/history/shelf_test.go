package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
)

// storeOp is a call of an event store and, once it has returned, the answer.
type storeOp struct {
	ID           string // connects call and answer
	Client       int
	Call, Return int64 // times; Return is 0 until there is an answer
	Asked        storeCall
	Answer       storeAnswer
}

// storeCall is a request to a shelf: two streams that batches may share, and the idempotency keys
// used with them.
type storeCall struct {
	Kind  storeKind
	Shelf string
	// For an append. Every sending has its own events and its own tag, even under a key that was
	// sent before.
	Writes []write
	Key    string
	Tag    string // stored as the answer's response
	// For a load.
	Stream int
	After  uint64
}

type storeKind string

const (
	appendBatch storeKind = "append"
	loadStream  storeKind = "load"
	lookUpKey   storeKind = "look up"
)

// write is the part of a batch for one stream of the shelf.
type write struct {
	Stream   int // 0 or 1
	Expected uint64
	IDs      []uuid.UUID
}

// storeAnswer is the answer of the store.
type storeAnswer struct {
	Outcome  outcome
	Position event.Position // of the stored batch
	Stream   int            // the stream that conflicts
	Actual   uint64         // its version
	Kept     kept           // under the key; without a tag if there is nothing
	Events   []versioned    // of a load
}

type outcome string

const (
	lost     outcome = "" // no answer: it took effect at any time after the call, or never
	stored   outcome = "stored"
	conflict outcome = "conflict"
	answered outcome = "answered already"
	looked   outcome = "looked"
)

// kept is a stored answer of an idempotency key.
type kept struct {
	Tag      string
	Version  uint64
	Position event.Position
}

type versioned struct {
	ID      uuid.UUID
	Version uint64
}

func (c storeCall) name() string { return c.Shelf }

func streamName(shelf string, stream int) string { return fmt.Sprint(shelf, "/", stream) }

// shelf is the sequential specification. A shelf is immutable. It records the order of batches only
// within each stream. So two orders of batches without a common stream lead to equal shelves, and
// the search tries only one of them.
type shelf struct {
	streams [2]*part
	alone   []storeCall // batches without events, by tag
}

// part is what a batch stored in a stream; nil is the empty stream.
type part struct {
	before  *part
	batch   *storeCall
	ids     []uuid.UUID
	version uint64 // of the last event
}

func (p *part) at() uint64 {
	if p == nil {
		return 0
	}
	return p.version
}

// and returns the shelf with one more batch.
func (s *shelf) and(c storeCall) *shelf {
	next := *s
	for _, w := range c.Writes {
		p := s.streams[w.Stream]
		next.streams[w.Stream] = &part{before: p, batch: &c, ids: w.IDs, version: p.at() + uint64(len(w.IDs))}
	}
	if len(c.Writes) == 0 {
		place, _ := slices.BinarySearchFunc(s.alone, c, func(a, b storeCall) int { return cmp.Compare(a.Tag, b.Tag) })
		next.alone = slices.Insert(slices.Clone(s.alone), place, c)
	}
	return &next
}

// equal reports whether no call can distinguish the two.
func (s *shelf) equal(t *shelf) bool {
	for i := range s.streams {
		p, q := s.streams[i], t.streams[i]
		for ; p != q; p, q = p.before, q.before {
			if p == nil || q == nil || p.batch.Tag != q.batch.Tag {
				return false
			}
		}
	}
	return slices.EqualFunc(s.alone, t.alone, func(a, b storeCall) bool { return a.Tag == b.Tag })
}

// step reports whether the shelf may give this answer, and returns the next shelf.
func (s *shelf) step(c storeCall, a storeAnswer) (bool, *shelf) {
	switch c.Kind {
	case loadStream:
		return s.holds(c.Stream, c.After, a.Events), s
	case lookUpKey:
		first := s.answerTo(c.Key)
		return (first == nil && a.Kept.Tag == "") || (first != nil && a.Kept.Tag == first.Tag), s
	case appendBatch:
	}
	first, fits := s.answerTo(c.Key), true
	for _, w := range c.Writes {
		fits = fits && s.streams[w.Stream].at() == w.Expected
	}
	switch a.Outcome {
	case stored:
		return first == nil && fits, s.and(c)
	case answered:
		return first != nil && first.Tag == a.Kept.Tag, s
	case conflict:
		there := slices.ContainsFunc(c.Writes,
			func(w write) bool { return w.Stream == a.Stream && w.Expected != a.Actual })
		return first == nil && there && s.streams[a.Stream].at() == a.Actual, s
	case lost: // "never" is the same as after everything else
		if first == nil && fits {
			return true, s.and(c)
		}
		return true, s
	default:
		return false, s
	}
}

// answerTo returns the batch that was stored under a key.
func (s *shelf) answerTo(key string) *storeCall {
	if key == "" {
		return nil
	}
	for _, p := range s.streams {
		for ; p != nil; p = p.before {
			if p.batch.Key == key {
				return p.batch
			}
		}
	}
	for i := range s.alone {
		if s.alone[i].Key == key {
			return &s.alone[i]
		}
	}
	return nil
}

// holds reports whether these are the events of a load after a version.
func (s *shelf) holds(stream int, after uint64, events []versioned) bool {
	p := s.streams[stream]
	version := p.at()
	if uint64(len(events)) != version-min(after, version) {
		return false
	}
	for ; len(events) > 0; p = p.before {
		for i := len(p.ids) - 1; i >= 0 && len(events) > 0; i-- {
			if events[len(events)-1] != (versioned{p.ids[i], version}) {
				return false
			}
			events, version = events[:len(events)-1], version-1
		}
	}
	return true
}

// shelves is the model of an event store. Only positions connect shelves, so each is searched
// alone.
var shelves = porcupine.Model{
	Partition: partition,
	Init:      func() any { return &shelf{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(*shelf).step(input.(storeCall), output.(storeAnswer))
	},
	Equal: func(a, b any) bool { return a.(*shelf).equal(b.(*shelf)) },
	DescribeOperation: func(input,
		output any) string {
		return describeStoreOp(input.(storeCall), output.(storeAnswer))
	},
	DescribeState: func(state any) string {
		s := state.(*shelf)
		return fmt.Sprintf("versions %d and %d", s.streams[0].at(), s.streams[1].at())
	},
}

func describeStoreOp(c storeCall, a storeAnswer) string {
	switch c.Kind {
	case loadStream:
		var text strings.Builder
		for _, e := range a.Events {
			fmt.Fprintf(&text, " %d:%s", e.Version, short(e.ID))
		}
		return fmt.Sprintf("load %d after %d →%s", c.Stream, c.After, text.String())
	case lookUpKey:
		return fmt.Sprintf("look up %s → %q", c.Key, a.Kept.Tag)
	case appendBatch:
	}
	var text strings.Builder
	fmt.Fprintf(&text, "append %s", c.Tag)
	if c.Key != "" {
		fmt.Fprintf(&text, " under key %s", c.Key)
	}
	for _, w := range c.Writes {
		fmt.Fprintf(&text, " %d@%d:", w.Stream, w.Expected)
		for _, id := range w.IDs {
			fmt.Fprintf(&text, " %s", short(id))
		}
	}
	switch a.Outcome {
	case conflict:
		fmt.Fprintf(&text, " → %d is at version %d", a.Stream, a.Actual)
	case answered:
		fmt.Fprintf(&text, " → answered by %s", a.Kept.Tag)
	case lost:
		text.WriteString(" → ?")
	case stored, looked:
		fmt.Fprintf(&text, " → %s", a.Outcome)
	}
	return text.String()
}

// short returns the part of an id that differs visibly.
func short(id uuid.UUID) string { return id.String()[28:] }
