// Package commands runs commands.
//
// A service's domain is a Decider: pure functions Decide (state and command to events) and Evolve
// (state and event to state). A Runner does the rest. It loads the stream from its last snapshot,
// decides, appends the events, and retries if another process appended first. Do runs one command
// and answers its request.
//
// Invariants:
//
//   - A command is stored once. Its idempotency key, events, answer and snapshot are one
//     transaction, and the same key returns the first answer.
//   - A rejected command (RejectedError) stores nothing.
//   - Within a process, commands on one stream run one after the other. Across processes, the
//     store's version check detects conflicts.
//   - A receipt contains the token of the new state, so that queries can wait for it.
//
// Read runner.go first, then state.go and append.go. The services are the folders below; eventstore
// is the store.
package commands

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
)

// Decider is the domain of one aggregate: state S, commands C, events E. It has no I/O, no clock
// and no randomness: commands contain their time and new ids. The zero S is the state of a stream
// that does not exist.
//
// E is the aggregate's events message. It has a oneof named "event", and the first
// google.protobuf.Timestamp of each member is the business time of the event. Snapshots store S as
// JSON.
type Decider[S, C any, E proto.Message] struct {
	// Decide returns the events of a command, none if it changes nothing, or a *RejectedError. It
	// must not change s.
	Decide func(s S, c C) ([]E, error)
	// Evolve returns the state after an event. It cannot fail, because the event has happened. It
	// owns s and may reuse it.
	Evolve func(s S, e E) S
	// Opens reports whether a command usually starts a new stream. Such a command is first decided
	// without reading the stream. It may be nil.
	Opens func(c C) bool
	// Schema is the version of S's format, from 1. Increase it with every change that older
	// snapshots do not fit: they are then ignored and replaced.
	Schema int
}

// Code classifies a rejection by what the caller can do about it.
type Code int

// The codes, and the Connect codes that they become.
const (
	Invalid       Code = iota // InvalidArgument: the command is wrong in every state
	NotFound                  // NotFound: its subject does not exist
	AlreadyExists             // AlreadyExists: its subject already exists
	Refused                   // FailedPrecondition: the state does not allow it
)

// connect returns the Connect code of a rejection.
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

// RejectedError is the rejection of a command by a business rule. A rejected command stores
// nothing.
type RejectedError struct {
	Code   Code
	Rule   string            // stable, for programs: "order_cancelled"
	Field  string            // the field at fault, if any: "lines[3].unit_price"
	Reason string            // for people; contains no personal data
	Facts  map[string]string // facts of the current state, for programs; may be nil
}

func (r *RejectedError) Error() string {
	if r.Field == "" {
		return r.Reason
	}
	return r.Field + ": " + r.Reason
}

// In sets the field at fault.
func (r *RejectedError) In(format string, args ...any) *RejectedError {
	r.Field = fmt.Sprintf(format, args...)
	return r
}

// CheckPrice rejects a price that is malformed, negative, or not in the given currency; "" allows
// any.
func CheckPrice(price *money.Money, currency string) *RejectedError {
	if err := event.ValidateMoney(price); err != nil {
		return &RejectedError{Code: Invalid, Rule: "money_malformed", Reason: err.Error()}
	}
	if event.IsNegative(price) {
		return &RejectedError{Code: Invalid, Rule: "price_negative", Reason: "a price must be at least 0"}
	}
	if code := price.GetCurrencyCode(); currency != "" && code != currency {
		return &RejectedError{Code: Invalid, Rule: "currency_differs",
			Reason: fmt.Sprintf("the price is in %s, but must be in %s", code, currency)}
	}
	return nil
}
