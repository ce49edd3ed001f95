package event

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Check returns an error that wraps ErrNotEvent if e is not an event of the aggregate. Every reader
// of the log uses it, so views, tables and digests agree on what an event is:
//
//   - The envelope fits every sink: text is UTF-8, and the version fits a signed 64-bit integer.
//   - The type belongs to the aggregate. It may be newer than this program.
//   - The payload can be decoded to its end. It contains exactly one event, of that type and for
//     that stream.
//
// FromRecord has already checked that the headers are present. Check does not ask the store whether
// it knows the event's id, because most readers have no store.
func (a Aggregate) Check(e Event) error {
	if err := a.check(e); err != nil {
		return fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	return nil
}

// CheckOn is Check for the aggregate of a topic. On other topics only the envelope is known, and it
// returns nil.
func CheckOn(topic string, e Event) error {
	for _, a := range aggregates {
		if a.Topic == topic {
			return a.Check(e)
		}
	}
	if topic == Behavior.Topic {
		return Behavior.Check(e)
	}
	return nil
}

// check is Check without the wrapping error. The cheap checks of the envelope come first.
func (a Aggregate) check(e Event) error {
	if e.Aggregate != a.Name {
		return fmt.Errorf("aggregate is %q, want %q", e.Aggregate, a.Name)
	}
	if e.Version > math.MaxInt64 {
		return fmt.Errorf("version %d is too large", e.Version)
	}
	for _, s := range [...]string{e.Stream, e.Type, e.CorrelationID, e.CausationID, e.TraceParent} {
		if !utf8.ValidString(s) {
			return errors.New("the key or a header is not UTF-8")
		}
	}
	if a == Behavior {
		return checkBehavior(e)
	}
	c, err := contractOf(a.Message)
	if err != nil {
		return err
	}
	return c.check(a, e)
}

// check compares the type with the payload, and the payload's stream with the key.
func (c *contract) check(a Aggregate, e Event) error {
	number, content, err := c.member(e.Data)
	if err != nil {
		return fmt.Errorf("payload of %s: %w", e.Type, err)
	}
	want, known := c.types[e.Type]
	switch {
	case !known:
		// "millrace.order.v2.OrderSplit" is of the same family as "millrace.order.v1.OrderEvent".
		if !protoreflect.FullName(e.Type).IsValid() || !strings.HasPrefix(e.Type, family(a.Message)) {
			return fmt.Errorf("type %q does not belong to %s", e.Type, a.Message)
		}
		if number != 0 {
			return fmt.Errorf("type is %s, but the payload contains another event", e.Type)
		}
		if len(e.Data) == 0 {
			return fmt.Errorf("payload of %s is empty", e.Type)
		}
		return nil
	case number != want:
		return fmt.Errorf("type is %s, but the payload contains no such event", e.Type)
	}
	if err := c.members[number].walk(content, e.Stream); err != nil {
		return fmt.Errorf("payload of %s: %w", e.Type, err)
	}
	return nil
}

// family returns the package of a message without its version, with a trailing dot.
func family(message string) string {
	name := protoreflect.FullName(message).Parent() // the package
	return string(name.Parent()) + "."
}
