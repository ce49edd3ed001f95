// Package commandstest contains helpers for tests of services.
//
// A Spec makes a test read like a specification: given a history, a command results in these
// events, or this rule rejects it. Check runs specs against a decider, without a store. Snapshots
// checks that a state survives its encoding.
//
// OpenStore and Serve run a service on loopback with a store of its own, so that tests call it as
// clients do. Rejection and Events inspect the result.
package commandstest

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
)

// Spec is one example of a decider's behaviour. C is the type of its commands, and E that of its
// events. Either Then or Refused is the expected result.
type Spec[C any, E proto.Message] struct {
	Given   []E                     // history of the stream
	When    C                       // the command
	Then    []E                     // empty if the command is accepted and changes nothing
	Refused *commands.RejectedError // instead of Then; its Reason is prose and is not compared
}

// Check runs specs as subtests, by name. It also checks of each that Decide is pure with respect to
// the state.
func Check[S, C any, E proto.Message](t *testing.T, d commands.Decider[S, C, E], specs map[string]Spec[C, E]) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := specs[name]
			state := Fold(d, spec.Given)
			before := marshal(t, state)
			events, err := d.Decide(state, spec.When)
			// A decider must not change its input: the runner folds the events into the same
			// state.
			if after := marshal(t, state); after != before {
				t.Errorf("Decide changed the state\nfrom %s\nto   %s", before, after)
			}
			if spec.Refused != nil {
				checkRefusal(t, events, err, spec.Refused)
				return
			}
			if err != nil {
				t.Fatalf("rejected: %v", err)
			}
			if !slices.EqualFunc(events, spec.Then, func(a, b E) bool { return proto.Equal(a, b) }) {
				t.Errorf("got the events\n%s\nwant\n%s", format(events), format(spec.Then))
			}
		})
	}
}

// checkRefusal compares a rejection with the expected one. Of the reason it checks only that there
// is one.
func checkRefusal[E proto.Message](t *testing.T, events []E, err error, want *commands.RejectedError) {
	t.Helper()
	var got *commands.RejectedError
	if !errors.As(err, &got) {
		t.Fatalf("want a rejection by rule %s, got error %v and events\n%s", want.Rule, err, format(events))
	}
	if got.Code != want.Code || got.Rule != want.Rule || got.Field != want.Field || !maps.Equal(got.Facts, want.Facts) {
		t.Errorf("rejected by %+v\nwant        %+v", *got, *want)
	}
	if got.Reason == "" || len(events) > 0 {
		t.Errorf("a rejection must have a reason (%q) and no events (%d)", got.Reason, len(events))
	}
}

// Fold returns the state after events, from the state of a stream that does not exist.
func Fold[S, C any, E proto.Message](d commands.Decider[S, C, E], events []E) S {
	var s S
	for _, e := range events {
		s = d.Evolve(s, e)
	}
	return s
}

// Snapshots checks that a random history results in the same state with and without a snapshot in
// between. draw draws a command for a state. Rejected commands add nothing to the history. A field
// of the state that its encoding omits would be lost in the snapshot, and change what later events
// result in.
func Snapshots[S, C any, E proto.Message](t *testing.T, d commands.Decider[S, C, E], draw func(t *rapid.T, s S) C) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		var history []E
		for range rapid.IntRange(1, 30).Draw(t, "commands") {
			s := Fold(d, history)
			// Only a rejection is expected. Any other error is a bug of the decider.
			events, err := d.Decide(s, draw(t, s))
			if refused := (*commands.RejectedError)(nil); err != nil && !errors.As(err, &refused) {
				t.Fatal(err)
			}
			history = append(history, events...)
		}
		at := rapid.IntRange(0, len(history)).Draw(t, "snapshot at")
		// Restore the state through JSON, as from a snapshot, and apply the rest of the history.
		var s S
		if err := json.Unmarshal([]byte(marshal(t, Fold(d, history[:at]))), &s); err != nil {
			t.Fatal(err)
		}
		for _, e := range history[at:] {
			s = d.Evolve(s, e)
		}
		if got, want := marshal(t, s), marshal(t, Fold(d, history)); got != want {
			t.Fatalf("with a snapshot at %d of %d: %s\nwithout: %s", at, len(history), got, want)
		}
	})
}

// fataler is the part of testing.T and rapid.T that marshal uses.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

// marshal returns a state in the encoding of snapshots.
func marshal(t fataler, state any) string {
	t.Helper()
	b, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// format returns events as JSON, one per line, for error messages.
func format[E proto.Message](events []E) string {
	if len(events) == 0 {
		return "  (nothing)"
	}
	var lines []string
	for _, e := range events {
		lines = append(lines, "  "+protojson.Format(e))
	}
	return strings.Join(lines, "\n")
}
