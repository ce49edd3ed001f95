package event

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Check reports why e is not an event of the aggregate, in an error that wraps ErrNotEvent; nil where it is one. Every
// reader of the log goes by it, so that views, tables and digests agree on what counts: the envelope can be kept
// everywhere, the type is one of the aggregate's, known to this program or newer, and the payload holds exactly one
// event, which is of that type and about that stream, and which can be read to the end. FromRecord has checked before
// that the headers are there.
//
// Whether the store knows the event's id is not asked here: most readers have no store.
func (a Aggregate) Check(e Event) error {
	if err := a.check(e); err != nil {
		return fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	return nil
}

// CheckOn is Check of the aggregate that a topic carries. On any other topic the envelope is all that is known.
func CheckOn(topic string, e Event) error {
	for _, a := range aggregates {
		if a.Topic == topic {
			return a.Check(e)
		}
	}
	return nil
}

func (a Aggregate) check(e Event) error {
	if e.Aggregate != a.Name {
		return fmt.Errorf("it is of aggregate %q, want %q", e.Aggregate, a.Name)
	}
	if e.Version > math.MaxInt64 {
		return fmt.Errorf("version %d is too large", e.Version)
	}
	for _, s := range [...]string{e.Stream, e.Type, e.CorrelationID, e.CausationID, e.TraceParent} {
		if !utf8.ValidString(s) {
			return errors.New("key or headers are not UTF-8")
		}
	}
	c, err := contractOf(a.Message)
	if err != nil {
		return err
	}
	return c.check(a, e)
}

// check compares type, payload and stream.
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
			return fmt.Errorf("type %q is none of %s", e.Type, a.Message)
		}
		if number != 0 {
			return fmt.Errorf("type is %s, and the payload holds another", e.Type)
		}
		if len(e.Data) == 0 {
			return fmt.Errorf("payload of %s is empty", e.Type)
		}
		return nil
	case number != want:
		return fmt.Errorf("type is %s, and the payload holds none", e.Type)
	}
	if err := c.members[number].walk(content, e.Stream); err != nil {
		return fmt.Errorf("payload of %s: %w", e.Type, err)
	}
	return nil
}

// family is the package of a message without its version, with the dot behind it.
func family(message string) string {
	name := protoreflect.FullName(message).Parent() // the package
	return string(name.Parent()) + "."
}
