// Package contractdiff explains what a change of an event contract means for events that are
// already stored.
//
// Compare returns the changes between two versions of an events message, each with its effect on
// stored events. Events are never rewritten: their bytes remain as they were, and a newer contract
// reads them. So a change is safe if the new contract reads each old event with its old meaning.
//
// Fields are matched by number, as Protobuf does. The rules are those of
// https://protobuf.dev/programming-guides/proto3/#updating.
package contractdiff

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Change is one difference between two versions of a contract.
type Change struct {
	// Message is the full name of the message with the difference. Path is the way to it from the
	// events message, such as "placed.lines.sku".
	Message protoreflect.FullName
	Path    string
	What    string // such as "field tax is new"
	Effect  string // on stored events
	// Breaks reports that stored events lose a value, or get another meaning.
	Breaks bool
}

// Compare returns the changes from one version of an events message to another, in the order of the
// fields' numbers. A message that occurs in several places is compared once.
func Compare(before, after protoreflect.MessageDescriptor) []Change {
	c := comparison{seen: map[protoreflect.FullName]bool{}}
	c.messages("", before, after)
	return c.changes
}

// comparison collects changes.
type comparison struct {
	seen    map[protoreflect.FullName]bool
	changes []Change
}

// add adds a change of a message.
func (c *comparison) add(at protoreflect.MessageDescriptor, path, what, effect string, breaks bool) {
	c.changes = append(c.changes, Change{Message: at.FullName(), Path: path, What: what, Effect: effect, Breaks: breaks})
}

// messages compares two versions of a message at a path. Member types of the oneof "event" at the
// top are the types of events.
func (c *comparison) messages(path string, before, after protoreflect.MessageDescriptor) {
	if c.seen[before.FullName()] {
		return
	}
	c.seen[before.FullName()] = true
	for _, number := range numbers(before, after) {
		old, now := before.Fields().ByNumber(number), after.Fields().ByNumber(number)
		switch {
		case now == nil:
			c.removed(path, after, old)
		case old == nil:
			c.added(path, before, after, now)
		default:
			c.fields(join(path, now), after, old, now)
		}
	}
}

// numbers returns the numbers of the fields of two messages, in order.
func numbers(messages ...protoreflect.MessageDescriptor) (all []protoreflect.FieldNumber) {
	for _, md := range messages {
		for i := range md.Fields().Len() {
			all = append(all, md.Fields().Get(i).Number())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// join returns the path of a field.
func join(path string, fd protoreflect.FieldDescriptor) string {
	if path == "" {
		return string(fd.Name())
	}
	return path + "." + string(fd.Name())
}

// isEventType reports whether a field is a type of event: a message in the oneof "event" of an
// events message.
func isEventType(path string, fd protoreflect.FieldDescriptor) bool {
	return path == "" && fd.Kind() == protoreflect.MessageKind &&
		fd.ContainingOneof() != nil && fd.ContainingOneof().Name() == "event"
}

// removed adds the change of a field that the new version does not have.
func (c *comparison) removed(path string, after protoreflect.MessageDescriptor, old protoreflect.FieldDescriptor) {
	at := join(path, old)
	if isEventType(path, old) {
		c.add(after, at, fmt.Sprintf("the event type %s is gone", old.Message().Name()),
			"services refuse the streams that have such an event; views skip it", true)
		return
	}
	effect := "stored values stay in the events, as unknown fields, and readers do not see them"
	if !after.ReservedRanges().Has(old.Number()) {
		effect += fmt.Sprintf("; reserve number %d, or a later field could read them", old.Number())
	}
	c.add(after, at, fmt.Sprintf("field %s = %d is gone", old.Name(), old.Number()), effect, true)
}

// added adds the change of a field that the old version does not have.
func (c *comparison) added(
	path string,
	before, after protoreflect.MessageDescriptor,
	now protoreflect.FieldDescriptor,
) {
	at := join(path, now)
	if isEventType(path, now) {
		c.add(after, at, fmt.Sprintf("the event type %s is new", now.Message().Name()),
			"stored streams have none; services of the older version refuse streams that have one: upgrade them first", false)
		return
	}
	what := fmt.Sprintf("field %s = %d is new", now.Name(), now.Number())
	if before.ReservedRanges().Has(now.Number()) {
		c.add(after, at, what, fmt.Sprintf("number %d was reserved: stored events may have values of a removed field there",
			now.Number()), true)
		return
	}
	c.add(after, at, what, "stored events "+absent(now), false)
}

// absent describes how a field reads that an event does not have.
func absent(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap(), fd.IsList():
		return "have none"
	case fd.HasPresence():
		return "do not have it, and readers can tell"
	}
	return fmt.Sprintf("read as %q, and readers cannot tell this from a written value; make it optional if they must",
		fmt.Sprint(fd.Default().Interface()))
}

// fields compares two versions of a field.
func (c *comparison) fields(path string, after protoreflect.MessageDescriptor, old, now protoreflect.FieldDescriptor) {
	if old.Name() != now.Name() {
		c.add(after, path, fmt.Sprintf("field %s = %d is called %s", old.Name(), old.Number(), now.Name()),
			"stored events read as before; JSON and code use the new name", false)
	}
	if was, is := cardinality(old), cardinality(now); was != is {
		c.cardinality(path, after, old, now, was, is)
		return
	}
	if old.IsMap() {
		c.fields(path+".key", after, old.MapKey(), now.MapKey())
		c.fields(path+".value", after, old.MapValue(), now.MapValue())
		return
	}
	if !c.types(path, after, old, now) {
		return
	}
	switch {
	case now.Message() != nil:
		c.messages(path, old.Message(), now.Message())
	case now.Enum() != nil:
		c.enums(path, after, old.Enum(), now.Enum())
	}
	if !now.IsList() && now.Message() == nil {
		c.presence(path, after, old, now)
	}
	c.oneofs(path, after, old, now)
}

// cardinality returns "map", "repeated" or "singular".
func cardinality(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return "map"
	case fd.IsList():
		return "repeated"
	}
	return "singular"
}

// cardinality adds the change of a field that holds another number of values.
func (c *comparison) cardinality(
	path string, after protoreflect.MessageDescriptor, old, now protoreflect.FieldDescriptor, was, is string,
) {
	what := fmt.Sprintf("field %s was %s and is %s", now.Name(), was, is)
	switch {
	case wireType(old.Kind()) != wireType(now.Kind()) || old.Kind() != now.Kind():
		c.add(after, path, what, "stored values are not read", true)
	case was == "singular" && is == "repeated":
		c.add(after, path, what, "a stored value reads as a list of one; a table's column cannot change like this", true)
	case was == "repeated" && is == "singular":
		c.add(after, path, what, "of several stored values, readers see the last", true)
	default:
		c.add(after, path, what, "stored values are read as something else", true)
	}
}

// types compares the types of a field's values. It reports whether they are the same, so that parts
// of them can be compared.
func (c *comparison) types(
	path string,
	after protoreflect.MessageDescriptor,
	old, now protoreflect.FieldDescriptor,
) bool {
	was, is := typeName(old), typeName(now)
	if old.Kind() == now.Kind() && was == is {
		return true
	}
	what := fmt.Sprintf("field %s was %s and is %s", now.Name(), was, is)
	switch {
	case old.Kind() == now.Kind(): // another message or enum
		c.add(after, path, what, "stored values are read as the other type: compare the two", true)
	case widens(old.Kind(), now.Kind()):
		c.add(after, path, what, "stored values read as before", false)
	case sameEncoding(old.Kind(), now.Kind()):
		c.add(after, path, what, "stored values that the new type cannot hold read as other values", true)
	case wireType(old.Kind()) == wireType(now.Kind()):
		c.add(after, path, what, "stored values are decoded as other values", true)
	default:
		c.add(after, path, what, "stored values are not read: they become unknown fields", true)
	}
	return false
}

// typeName returns how a contract names the type of a field.
func typeName(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.Message() != nil:
		return string(fd.Message().FullName())
	case fd.Enum() != nil:
		return string(fd.Enum().FullName())
	}
	return fd.Kind().String()
}

// widens reports whether a type holds every value of another with the same encoding.
func widens(old, now protoreflect.Kind) bool {
	type pair struct{ old, now protoreflect.Kind }
	return slices.Contains([]pair{
		{protoreflect.Int32Kind, protoreflect.Int64Kind}, {protoreflect.Uint32Kind, protoreflect.Uint64Kind},
		{protoreflect.Sint32Kind, protoreflect.Sint64Kind}, {protoreflect.BoolKind, protoreflect.Int32Kind},
		{protoreflect.BoolKind, protoreflect.Int64Kind}, {protoreflect.BoolKind, protoreflect.Uint32Kind},
		{protoreflect.BoolKind, protoreflect.Uint64Kind}, {protoreflect.Uint32Kind, protoreflect.Int64Kind},
		{protoreflect.EnumKind, protoreflect.Int32Kind}, {protoreflect.EnumKind, protoreflect.Int64Kind},
		{protoreflect.StringKind, protoreflect.BytesKind},
	}, pair{old, now})
}

// encodings are the kinds that encode equal values equally.
var encodings = [][]protoreflect.Kind{
	{protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Uint32Kind, protoreflect.Uint64Kind,
		protoreflect.BoolKind, protoreflect.EnumKind},
	{protoreflect.Sint32Kind, protoreflect.Sint64Kind},
	{protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind},
	{protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind},
	{protoreflect.StringKind, protoreflect.BytesKind},
}

// sameEncoding reports whether two kinds encode the values that both have equally.
func sameEncoding(a, b protoreflect.Kind) bool {
	return slices.ContainsFunc(encodings, func(same []protoreflect.Kind) bool {
		return slices.Contains(same, a) && slices.Contains(same, b)
	})
}

// wireType returns how values of a kind are delimited.
func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	}
	return protowire.VarintType
}

// enums compares two versions of an enum.
func (c *comparison) enums(path string, after protoreflect.MessageDescriptor, old, now protoreflect.EnumDescriptor) {
	if c.seen[old.FullName()] {
		return
	}
	c.seen[old.FullName()] = true
	for i := range old.Values().Len() {
		was := old.Values().Get(i)
		switch is := now.Values().ByNumber(was.Number()); {
		case is == nil:
			c.add(after, path, fmt.Sprintf("value %s = %d of %s is gone", was.Name(), was.Number(), old.Name()),
				"stored events with it read as an unnamed number", true)
		case is.Name() != was.Name():
			c.add(after, path, fmt.Sprintf("value %s = %d of %s is called %s", was.Name(), was.Number(), old.Name(), is.Name()),
				"stored events have the new name; rows of tables that are landed already keep the old one", true)
		}
	}
	for i := range now.Values().Len() {
		if is := now.Values().Get(i); old.Values().ByNumber(is.Number()) == nil {
			c.add(after, path, fmt.Sprintf("value %s = %d of %s is new", is.Name(), is.Number(), now.Name()),
				"stored events do not have it; readers of the older version see an unnamed number", false)
		}
	}
}

// presence adds a change of whether readers can tell that a field is absent.
func (c *comparison) presence(
	path string,
	after protoreflect.MessageDescriptor,
	old, now protoreflect.FieldDescriptor,
) {
	switch was, is := old.HasPresence(), now.HasPresence(); {
	case !was && is:
		c.add(after, path, fmt.Sprintf("field %s is optional now", now.Name()),
			"stored events whose value was the default do not have it, because it was not written", true)
	case was && !is:
		c.add(after, path, fmt.Sprintf("field %s is not optional any more", now.Name()),
			"stored events without it read as the default, and readers cannot tell", true)
	}
}

// oneofs adds a change of the oneof that a field is in.
func (c *comparison) oneofs(path string, after protoreflect.MessageDescriptor, old, now protoreflect.FieldDescriptor) {
	if was, is := oneof(old), oneof(now); was != is && was != "" && is != "" {
		c.add(after, path, fmt.Sprintf("field %s moved from the oneof %s to %s", now.Name(), was, is),
			"a stored event may have several fields of the new oneof: readers see the last", true)
	} else if was == "" && is != "" {
		c.add(after, path, fmt.Sprintf("field %s moved into the oneof %s", now.Name(), is),
			"a stored event may have several fields of it: readers see the last", true)
	} else if is == "" && was != "" {
		c.add(after, path, fmt.Sprintf("field %s left the oneof %s", now.Name(), was), "stored events read as before", false)
	}
}

// oneof returns the name of the oneof that a field is in, "" if none.
func oneof(fd protoreflect.FieldDescriptor) protoreflect.Name {
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		return o.Name()
	}
	return ""
}
