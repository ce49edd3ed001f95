// Package commands runs commands. A service's domain is a Decider, pure functions; the Runner does everything around it that
// has to do with the world: reading the stream, appending to it, trying again when somebody else was first, and answering
// a repeated command with its first answer.
package commands

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
)

// Decider is the domain of one aggregate: state S, commands C, events E. It does no I/O and knows no clock and no chance:
// the time of a command and new ids are in the command. The zero S is the state of a stream that does not exist.
//
// E is the aggregate's events message: a oneof named "event" whose members each carry the business time of the event as
// their first google.protobuf.Timestamp. S is kept in snapshots as JSON.
type Decider[S, C any, E proto.Message] struct {
	// Decide says what a command makes happen: its events, none where it changes nothing, or a *Rejected. It leaves s as it is.
	Decide func(s S, c C) ([]E, error)
	// Evolve gives the state after an event. It cannot refuse: the event has happened. It may reuse s, which the caller gives away.
	Evolve func(s S, e E) S
	// Opens tells which commands open a stream as a rule. They are first decided without reading it. May be nil.
	Opens func(c C) bool
	// Schema numbers the form of S, from 1. Raise it with every change of S that an older snapshot does not fit: such
	// snapshots are then ignored and replaced.
	Schema int
}

// Code says in what way a command was refused, and so what the caller can do about it.
type Code int

// The codes, and the Connect codes they become.
const (
	Invalid       Code = iota // InvalidArgument: the command is wrong, whatever the state
	NotFound                  // NotFound: it is about something that does not exist
	AlreadyExists             // AlreadyExists: it would make something that exists
	Refused                   // FailedPrecondition: the state does not allow it
)

func (c Code) connect() connect.Code {
	switch c {
	case Invalid:
		return connect.CodeInvalidArgument
	case NotFound:
		return connect.CodeNotFound
	case AlreadyExists:
		return connect.CodeAlreadyExists
	case Refused:
	}
	return connect.CodeFailedPrecondition
}

// Rejected is a business rule's refusal. A command that is rejected stores nothing.
type Rejected struct {
	Code   Code
	Rule   string            // stable, for programs: "order_cancelled"
	Field  string            // of the request, where one is at fault: "lines[3].unit_price"
	Reason string            // for people; names no personal data
	Facts  map[string]string // of the state that refused, for programs; may be nil
}

func (r *Rejected) Error() string {
	if r.Field == "" {
		return r.Reason
	}
	return r.Field + ": " + r.Reason
}

// In names the field at fault.
func (r *Rejected) In(format string, args ...any) *Rejected {
	r.Field = fmt.Sprintf(format, args...)
	return r
}

// CheckPrice rejects a price that is malformed, below zero, or in another currency than the one given; "" allows any.
func CheckPrice(price *money.Money, currency string) *Rejected {
	if err := event.ValidateMoney(price); err != nil {
		return &Rejected{Code: Invalid, Rule: "money_malformed", Reason: err.Error()}
	}
	if event.IsNegative(price) {
		return &Rejected{Code: Invalid, Rule: "price_negative", Reason: "a price must be at least 0"}
	}
	if code := price.GetCurrencyCode(); currency != "" && code != currency {
		return &Rejected{Code: Invalid, Rule: "currency_differs", Reason: fmt.Sprintf("the price is in %s, but must be in %s", code, currency)}
	}
	return nil
}
