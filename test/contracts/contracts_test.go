// Package contracts checks that every version of every event that Millrace has ever written is still
// read, and with the same meaning.
//
// testdata has a file for each version of each type of event: its bytes, and what the readers make of
// them. When a contract gets a field, TestEveryVersion fails until "go test ./test/contracts -update"
// has written a file of the new version. Existing bytes are never changed: they are what is in stores
// and on the log.
package contracts

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/commands"
	catalogcommands "github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/customer"
	identitycommands "github.com/millrace/millrace/commands/identity"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/wire"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

var update = flag.Bool("update", false, "write files of new versions, and what readers make of all versions")

// golden is the content of a file.
type golden struct {
	Wire    []byte            `json:"wire"`  // the events message
	Event   json.RawMessage   `json:"event"` // the same as JSON
	Readers map[string]string `json:"readers"`
}

// reader returns what a reader makes of an event that follows the opening event of its stream.
type reader func(history []event.Event) (any, error)

// readers are the readers of an aggregate, by name.
func readers(a event.Aggregate) map[string]reader {
	all := map[string]reader{}
	switch a.Name {
	case event.Order.Name:
		all["order service"] = fold(order.Decider())
		all["view orderstatus"] = project(orderstatus.Project)
	case event.Product.Name:
		all["catalog service"] = fold(catalogcommands.Decider())
		all["view catalog"] = project(catalog.Project)
	case event.Customer.Name:
		all["customer service"] = fold(customer.Decider())
	case event.Stock.Name:
		all["inventory service"] = fold(inventory.Decider())
	case event.Identity.Name:
		all["identity service"] = fold(identitycommands.Decider())
	}
	if slices.Contains(customer360.Sources(), a) && a != event.Behavior {
		all["view customer360"] = project(customer360.Facts(nil).Project)
	}
	for _, g := range shop.Groups(shop.Options{Currency: "GBP"}) {
		for _, s := range g.Sources {
			if s.Topic == a.Topic {
				all["features "+g.Name+"/"+s.Name] = func(history []event.Event) (any, error) {
					facts, err := s.Project(history[len(history)-1])
					return texts(s, facts), err
				}
			}
		}
	}
	return all
}

// fold returns the reader of a service: the state of the stream.
func fold[S, C any, E proto.Message](d commands.Decider[S, C, E]) reader {
	return func(history []event.Event) (any, error) {
		var s S
		for _, e := range history {
			var none E
			m := none.ProtoReflect().New().Interface().(E)
			if err := proto.Unmarshal(e.Data, m); err != nil {
				return nil, err
			}
			s = d.Evolve(s, m)
		}
		return s, nil
	}
}

// project returns the reader of a view: the document of the stream.
func project[D proto.Message](p func(D, event.Event) (D, error)) reader {
	return func(history []event.Event) (any, error) {
		var doc D
		for _, e := range history {
			var err error
			if doc, err = p(doc, e); err != nil {
				return nil, err
			}
		}
		return doc, nil
	}
}

// texts returns a line per fact.
func texts(s features.Source, facts []features.Fact) []string {
	lines := make([]string, len(facts))
	for i, f := range facts {
		lines[i] = fmt.Sprintf("%s %s at %s", f.Entity, f.Key, f.At.Format(time.RFC3339Nano))
		if f.Retracted {
			lines[i] += " retracted"
		}
		for j, v := range f.Values {
			lines[i] += fmt.Sprintf(" %s=%s", s.Columns[j].Name, v)
		}
	}
	return lines
}

// read returns what readers make of a history, as text: JSON, or the error.
func read(t *testing.T, r reader, history []event.Event) string {
	t.Helper()
	got, err := r(history)
	if err != nil {
		return "error: " + err.Error()
	}
	var b []byte
	if m, ok := got.(proto.Message); ok {
		b, err = protojson.Marshal(m)
	} else {
		b, err = json.Marshal(got)
	}
	if err != nil {
		t.Fatal(err)
	}
	return compact(t, b)
}

// compact returns JSON without the spaces that protojson varies on purpose.
func compact(t *testing.T, text []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestEveryVersion checks each version of each type of event.
func TestEveryVersion(t *testing.T) {
	t.Parallel()
	for _, a := range append(event.Aggregates(), event.Behavior) {
		md := descriptor(t, a.Message)
		if a == event.Behavior { // one type of event, without a oneof
			t.Run(a.Name, func(t *testing.T) { checkVersions(t, a, md, nil, nil) })
			continue
		}
		types := md.Oneofs().ByName("event").Fields()
		opening := populated(md, types.Get(0))
		for i := range types.Len() {
			t.Run(string(types.Get(i).Message().Name()), func(t *testing.T) {
				checkVersions(t, a, md, types.Get(i), opening)
			})
		}
	}
}

// checkVersions checks the versions of one type of event. opening is the event that its streams begin
// with.
func checkVersions(
	t *testing.T,
	a event.Aggregate,
	md protoreflect.MessageDescriptor,
	member protoreflect.FieldDescriptor,
	opening []byte,
) {
	t.Helper()
	name := md.Name()
	if member != nil {
		name = member.Message().Name()
	}
	today := populated(md, member)
	files, err := filepath.Glob(filepath.Join("testdata", string(name)+".*.json"))
	if err != nil {
		t.Fatal(err)
	}
	versions := make([]golden, len(files))
	for i := range files {
		load(t, file(name, i+1), &versions[i])
	}
	if len(versions) == 0 || len(missing(t, md, today, versions[len(versions)-1].Wire)) > 0 {
		if !*update {
			t.Fatalf("the contract of %s has changed: go test ./test/contracts -update writes version %d", name, len(versions)+1)
		}
		versions = append(versions, golden{Wire: today})
	}
	for i, v := range versions {
		e := envelope(a, md, v.Wire, 2)
		history := []event.Event{e}
		if opening != nil {
			history = []event.Event{envelope(a, md, opening, 1), e}
		}
		now := check(t, a, md, history)
		if *update {
			save(t, file(name, i+1), golden{Wire: v.Wire, Event: now.Event, Readers: now.Readers})
			continue
		}
		if got, want := compact(t, now.Event), compact(t, v.Event); got != want {
			t.Errorf("version %d of %s reads as\n%s\nbefore:\n%s", i+1, name, got, want)
		}
		for r, got := range now.Readers {
			if want := v.Readers[r]; got != want {
				t.Errorf("%s makes of version %d of %s\n%s\nbefore:\n%s", r, i+1, name, got, want)
			}
		}
	}
}

// check returns what today's readers make of the last event of a history.
func check(t *testing.T, a event.Aggregate, md protoreflect.MessageDescriptor, history []event.Event) golden {
	t.Helper()
	e := history[len(history)-1]
	if err := a.Check(e); err != nil {
		t.Errorf("%s is no event any more: %v", e.Type, err)
	}
	m := newMessage(t, md)
	if err := proto.Unmarshal(e.Data, m); err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	land(t, md, e.Data)
	carriesUnknown(t, md, e.Data)
	now := golden{Event: text, Readers: map[string]string{}}
	for name, r := range readers(a) {
		now.Readers[name] = read(t, r, history)
	}
	return now
}

// land appends an event to the columns of its table, and returns them.
func land(t *testing.T, md protoreflect.MessageDescriptor, data []byte) *columnar.Columns {
	t.Helper()
	plan, err := wire.Compile(md, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		t.Fatal(err)
	}
	columns, err := columnar.New(columnar.WithIDs(plan.Fields()))
	if err != nil {
		t.Fatal(err)
	}
	d, err := plan.Bind(columns)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Append(data); err != nil {
		t.Errorf("%s does not fit its table: %v", md.FullName(), err)
	}
	return columns
}

// carriesUnknown checks that a field of a newer contract survives in a process of this one, and in the
// table.
func carriesUnknown(t *testing.T, md protoreflect.MessageDescriptor, data []byte) {
	t.Helper()
	newer := protowire.AppendString(
		protowire.AppendTag(bytes.Clone(data), 1999, protowire.BytesType),
		"of a newer contract",
	)
	m := newMessage(t, md)
	if err := proto.Unmarshal(newer, m); err != nil {
		t.Fatal(err)
	}
	again, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(again, []byte("of a newer contract")) {
		t.Errorf("%s drops unknown fields", md.FullName())
	}
	columns := land(t, md, newer)
	last := len(columns.Fields()) - 1 // the column of unknown fields is the last one
	if kept := columns.Column(last).(*columnar.Bytes); columns.Fields()[last].Name != wire.UnknownColumn ||
		kept.Len() != 1 || !bytes.Contains(kept.Value(0), []byte("of a newer contract")) {
		t.Errorf("the table of %s drops unknown fields", md.FullName())
	}
}

// missing returns the paths of the fields that today's contract has and an event does not.
func missing(t *testing.T, md protoreflect.MessageDescriptor, today, data []byte) []string {
	t.Helper()
	have := map[string]bool{}
	for _, p := range paths(t, md, data) {
		have[p] = true
	}
	return slices.DeleteFunc(paths(t, md, today), func(p string) bool { return have[p] })
}

// paths returns the paths of the fields that an event has.
func paths(t *testing.T, md protoreflect.MessageDescriptor, data []byte) (all []string) {
	t.Helper()
	m := newMessage(t, md)
	if err := proto.Unmarshal(data, m); err != nil {
		t.Fatal(err)
	}
	var walk func(at string, m protoreflect.Message)
	walk = func(at string, m protoreflect.Message) {
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			path := at + "." + string(fd.Name())
			all = append(all, path)
			switch {
			case fd.IsMap() || fd.Message() == nil:
			case fd.IsList():
				for i := range v.List().Len() {
					walk(path, v.List().Get(i).Message())
				}
			default:
				walk(path, v.Message())
			}
			return true
		})
	}
	walk("", m.ProtoReflect())
	return all
}

// Constants of the events that are written. Times are in the past, so that each event is valid.
const (
	stream = "019b8d73-dfa0-77b3-b48c-0c15d9771524"
	other  = "019b8d62-7a80-748f-8ecf-4a02507a5886"
	sku    = "22423"
	node   = "customer:" + stream
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

// populated returns an event that has every field of today's contract. member is its type, nil if the
// message has none.
func populated(md protoreflect.MessageDescriptor, member protoreflect.FieldDescriptor) []byte {
	m := dynamicpb.NewMessage(md)
	if member != nil {
		fill(m.Mutable(member).Message())
	} else {
		fill(m)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // cannot happen for valid UTF-8
	}
	return b
}

// fill sets every field of a message, and of each oneof the first.
func fill(m protoreflect.Message) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Timestamp":
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(at.Unix()))
		m.Set(m.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(int32(at.Nanosecond())))
		return
	case "google.type.Money":
		m.Set(m.Descriptor().Fields().ByName("currency_code"), protoreflect.ValueOfString("GBP"))
		m.Set(m.Descriptor().Fields().ByName("units"), protoreflect.ValueOfInt64(12))
		m.Set(m.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(340_000_000))
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() && m.WhichOneof(o) != nil {
			continue
		}
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(scalar(fd.MapKey()).MapKey(), scalar(fd.MapValue()))
		case fd.IsList():
			list := m.Mutable(fd).List()
			if fd.Message() != nil {
				fill(list.AppendMutable().Message())
			} else {
				list.Append(scalar(fd))
			}
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message())
		default:
			m.Set(fd, scalar(fd))
		}
	}
}

// scalar returns a value of a field that readers accept, by its name.
func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text(string(fd.Name())))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(fd.Enum().Values().Get(1).Number())
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	}
	panic(fmt.Sprintf("field %s: fill does not know its kind", fd.FullName()))
}

// text returns a text for a field.
func text(field string) string {
	switch {
	case field == "sku":
		return sku
	case field == "currency":
		return "GBP"
	case field == "properties", field == "traits", field == "context":
		return `{"k":1}`
	case field == "subject": // of the identity graph
		return node
	case field == "other_customer_id":
		return other
	case field == "type": // of behaviour
		return "track"
	case strings.HasSuffix(field, "_id"):
		return stream
	}
	return field
}

// envelope returns a stored event.
func envelope(a event.Aggregate, md protoreflect.MessageDescriptor, data []byte, version uint64) event.Event {
	if a == event.Behavior {
		m := &behaviorv1.BehaviorEvent{}
		if err := proto.Unmarshal(data, m); err != nil {
			panic(err)
		}
		return event.Event{
			ID: event.BehaviorID(m.GetSource(), m.GetMessageId()), Aggregate: a.Name, Type: a.Message, Stream: m.GetUserId(),
			Data: data, OccurredAt: m.GetTimestamp().AsTime(), RecordedAt: m.GetReceivedAt().AsTime(),
		}
	}
	e := event.Event{
		ID: uuid.MustParse(stream), Aggregate: a.Name, Stream: stream, Version: version, Type: string(md.FullName()),
		Data:       data,
		OccurredAt: event.Time(at), RecordedAt: event.Time(at),
	}
	m := dynamicpb.NewMessage(md)
	if err := proto.Unmarshal(data, m); err != nil {
		panic(err)
	}
	if o := md.Oneofs().ByName("event"); o != nil {
		fd := m.WhichOneof(o)
		e.Type = string(fd.Message().FullName())
		switch fields := fd.Message().Fields(); {
		case a == event.Identity:
			e.Stream = node
		case a != event.Order && fields.ByName("sku") != nil:
			e.Stream = sku
		}
	}
	return e
}

// descriptor returns a linked-in message.
func descriptor(t *testing.T, name string) protoreflect.MessageDescriptor {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		t.Fatal(err)
	}
	return d.(protoreflect.MessageDescriptor)
}

// newMessage returns an empty message of a linked-in type.
func newMessage(t *testing.T, md protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// file returns the name of a version's file.
func file(name protoreflect.Name, version int) string {
	return filepath.Join("testdata", fmt.Sprintf("%s.%d.json", name, version))
}

// load reads a file.
func load(t *testing.T, name string, into *golden) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// save writes a file.
func save(t *testing.T, name string, g golden) {
	t.Helper()
	b, err := json.MarshalIndent(g, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o750)
	}
	if err == nil {
		err = os.WriteFile(name, append(b, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
