package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"
)

// stockOp is a command on the stock of one SKU, or a look at it, and the answer. Each sending of a
// command is an operation.
type stockOp struct {
	Client       int
	Call, Return int64
	Asked        stockCall
	Answer       stockAnswer
}

type stockCall struct {
	Kind        stockKind
	SKU         string
	Key         string
	Quantity    int64 // or the delta of an adjustment
	Reservation string
}

type stockKind string

const (
	receive stockKind = "receive"
	adjust  stockKind = "adjust"
	reserve stockKind = "reserve"
	commit  stockKind = "commit"
	release stockKind = "release"
	getNow  stockKind = "get"
	readLog stockKind = "read the log of" // the last look, directly in the store
)

func (c stockCall) name() string { return c.SKU }

type stockAnswer struct {
	Outcome  outcome
	Version  uint64
	Rule     string            // of a rejection
	OnHand   int64             // of a look, or of a rejection with facts
	Reserved int64             // likewise
	Token    string            // of the receipt
	Expires  string            // of a reservation
	Log      []string          // keys of the commands that made the events, in order of versions
	Answered map[string]uint64 // versions by key, for commands without an event
}

// Outcomes of commands, besides stored, lost and looked.
const (
	replayed outcome = "replayed"
	refused  outcome = "refused"
)

// stock is the sequential specification. A stock is immutable.
type stock struct {
	log              *entry // its last entry
	onHand, reserved int64
	held             map[string]int64  // quantity by reservation
	unchanged        map[string]uint64 // versions by key, for accepted commands that changed nothing
}

// entry is an event's position in the log.
type entry struct {
	before  *entry
	key     string
	version uint64
}

func (s *stock) version() uint64 {
	if s.log == nil {
		return 0
	}
	return s.log.version
}

// answerTo returns the version that was answered under a key.
func (s *stock) answerTo(key string) (version uint64, ok bool) {
	for e := s.log; e != nil; e = e.before {
		if e.key == key {
			return e.version, true
		}
	}
	version, ok = s.unchanged[key]
	return version, ok
}

// decide returns the stock after a command, or the rule that rejects it. It is written
// independently, from the contract: the domain's own code would accept its own mistakes.
func (s *stock) decide(c stockCall) (next *stock, rule string) {
	next = &stock{log: &entry{before: s.log, key: c.Key, version: s.version() + 1}, onHand: s.onHand,
		reserved: s.reserved, held: s.held, unchanged: s.unchanged}
	quantity, held := s.held[c.Reservation]
	switch c.Kind {
	case receive:
		next.onHand += c.Quantity
	case adjust:
		next.onHand += c.Quantity
		switch {
		case next.onHand < 0:
			return s, "stock_negative"
		case next.onHand < s.reserved:
			return s, "stock_reserved"
		}
	case reserve:
		switch {
		case held && quantity != c.Quantity:
			return s, "reservation_differs"
		case held:
			next.log, next.unchanged = s.log, with(s.unchanged, c.Key, s.version())
			return next, ""
		case c.Quantity > s.onHand-s.reserved:
			return s, "stock_insufficient"
		}
		next.reserved, next.held = s.reserved+c.Quantity, with(s.held, c.Reservation, c.Quantity)
	case commit, release:
		if !held {
			return s, "reservation_unknown"
		}
		next.reserved, next.held = s.reserved-quantity, maps.Clone(s.held)
		delete(next.held, c.Reservation)
		if c.Kind == commit {
			next.onHand -= quantity
		}
	case getNow, readLog:
	}
	return next, ""
}

func with[V any](m map[string]V, key string, value V) map[string]V {
	more := maps.Clone(m)
	if more == nil {
		more = map[string]V{}
	}
	more[key] = value
	return more
}

// step reports whether the stock may give this answer, and returns the next stock.
func (s *stock) step(c stockCall, a stockAnswer) (bool, *stock) {
	switch c.Kind {
	case getNow:
		if a.Outcome == refused {
			return a.Rule == "stock_unknown" && s.log == nil, s
		}
		return s.log != nil && a.Version == s.version() && a.OnHand == s.onHand && a.Reserved == s.reserved, s
	case readLog:
		return s.isLog(a.Log) && maps.Equal(s.unchanged, a.Answered), s
	case receive, adjust, reserve, commit, release:
	}
	first, again := s.answerTo(c.Key)
	next, rule := s.decide(c)
	switch a.Outcome {
	case stored:
		return !again && rule == "" && next.version() == a.Version, next
	case replayed:
		return again && first == a.Version, s
	case refused:
		tells := rule != "reservation_unknown"
		return !again && rule != "" && rule == a.Rule && (!tells ||
			(a.OnHand == s.onHand && a.Reserved == s.reserved)), s
	case lost:
		if again || rule != "" {
			return true, s
		}
		return true, next
	default:
		return false, s
	}
}

func (s *stock) isLog(keys []string) bool {
	e := s.log
	for _, key := range slices.Backward(keys) {
		if e == nil || e.key != key {
			return false
		}
		e = e.before
	}
	return e == nil
}

// equal reports whether two stocks are the same. The log determines everything but the answers
// without an event.
func (s *stock) equal(t *stock) bool {
	for a, b := s.log, t.log; a != b; a, b = a.before, b.before {
		if a == nil || b == nil || a.key != b.key {
			return false
		}
	}
	return maps.Equal(s.unchanged, t.unchanged)
}

// stocks is the model of the inventory. Each SKU is searched alone.
var stocks = porcupine.Model{
	Partition: partition,
	Init:      func() any { return &stock{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(*stock).step(input.(stockCall), output.(stockAnswer))
	},
	Equal: func(a, b any) bool { return a.(*stock).equal(b.(*stock)) },
	DescribeOperation: func(input,
		output any) string {
		return describeStockOp(input.(stockCall), output.(stockAnswer))
	},
	DescribeState: func(state any) string {
		s := state.(*stock)
		held := slices.SortedFunc(maps.Keys(s.held), cmp.Compare)
		return fmt.Sprintf("version %d: %d on hand, %d reserved by %v", s.version(), s.onHand, s.reserved, held)
	},
}

func describeStockOp(c stockCall, a stockAnswer) string {
	said := string(a.Outcome)
	switch a.Outcome {
	case lost:
		said = "?"
	case stored, replayed:
		said = fmt.Sprintf("%s, version %d", a.Outcome, a.Version)
	case refused:
		said = fmt.Sprintf("%s of %d, %d reserved", a.Rule, a.OnHand, a.Reserved)
	case looked:
		said = fmt.Sprintf("version %d: %d on hand, %d reserved%v", a.Version, a.OnHand, a.Reserved, a.Log)
	}
	return fmt.Sprintf("%s %s %+d %s under %s → %s", c.Kind, c.SKU, c.Quantity, c.Reservation, c.Key, said)
}
