package protoavro

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// Schema derives the Avro schema of a message, according to what readers of Avro expect:
//
//   - A message becomes a record with the same full name. Message fields, `optional` fields and
//     members of a oneof become a union of null and their type. So an event is a record with one
//     field per event type, of which one is not null. All tools display that with names, unlike a
//     union of many records, and a new event type only adds a field.
//   - Every field has its zero value as default. So readers can read older data after a field has
//     been added, and older readers ignore it.
//   - An enum becomes an enum whose default is its first symbol, to which older readers map new
//     symbols.
//   - google.protobuf.Timestamp becomes a long with logical type timestamp-micros, and
//     google.type.Money a record of a currency and a decimal(38, 9).
//   - What Avro lacks, numbers and kinds, is in attributes that begin with "protobuf.". Personal
//     data has the tag PII, which Confluent's catalogue uses.
//   - The root's last field, _unknown, is null unless a message has something that the schema does
//     not know. Then it has the whole message as Protobuf.
func Schema(of protoreflect.MessageDescriptor) (string, error) {
	// The root has one field more than the record of its message; see unknownField.
	d := deriver{named: map[protoreflect.FullName]bool{}}
	root, err := d.record(of)
	if err != nil {
		return "", fmt.Errorf("schema of %s for Avro: %w", of.FullName(), err)
	}
	root.Fields = append(root.Fields, avroField{
		Name: unknownField, Type: nullable("bytes"), Default: json.RawMessage("null"),
		Doc: "null, or the whole message in Protobuf's wire format, where it has something that this schema does not know",
	})
	// The text is deterministic, so that the same message always has the same schema in a registry.
	schema, err := json.Marshal(root)
	if err != nil {
		return "", err
	}
	// A schema that Compile refuses must not be published.
	if _, err := Compile(string(schema)); err != nil {
		return "", fmt.Errorf("schema of %s for Avro: %w", of.FullName(), err)
	}
	return string(schema), nil
}

// Indented returns the schema of a message, formatted for reading.
func Indented(of protoreflect.MessageDescriptor) (string, error) {
	compact, err := Schema(of)
	if err != nil {
		return "", err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(compact), "", "  "); err != nil {
		return "", err
	}
	indented.WriteByte('\n')
	return indented.String(), nil
}

// Avro's JSON objects, with members in the conventional order.
type (
	avroRecord struct {
		Type      string      `json:"type"`
		Name      string      `json:"name"`
		Namespace string      `json:"namespace,omitempty"`
		Fields    []avroField `json:"fields"`
	}
	avroField struct {
		Name    string          `json:"name"`
		Type    any             `json:"type"`
		Default json.RawMessage `json:"default,omitempty"`
		Doc     string          `json:"doc,omitempty"`
		Number  int32           `json:"protobuf.number,omitempty"`
		Kind    string          `json:"protobuf.type,omitempty"`
		Oneof   string          `json:"protobuf.oneof,omitempty"`
		Tags    []string        `json:"confluent:tags,omitempty"`
	}
	avroEnum struct {
		Type      string   `json:"type"`
		Name      string   `json:"name"`
		Namespace string   `json:"namespace,omitempty"`
		Symbols   []string `json:"symbols"`
		Default   string   `json:"default"`
		Numbers   []int32  `json:"protobuf.numbers"`
	}
	avroArray struct {
		Type  string `json:"type"`
		Items any    `json:"items"`
	}
	avroMap struct {
		Type   string `json:"type"`
		Values any    `json:"values"`
	}
	avroLogical struct {
		Type        string `json:"type"`
		LogicalType string `json:"logicalType"`
		Precision   int    `json:"precision,omitempty"`
		Scale       int    `json:"scale,omitempty"`
	}
)

// nullable returns the union of null and a type. null comes first, because a default must be of the
// first type.
func nullable(t any) []any { return []any{"null", t} }

// deriver is the state of Schema. It walks the message types depth first. Avro allows one
// definition of a named type, at its first use in the order of the text.
type deriver struct {
	named map[protoreflect.FullName]bool // already defined, so a reference by name suffices
}

// record returns the record of a message. It marks the message as defined before its fields, which
// may contain the message itself.
func (d *deriver) record(m protoreflect.MessageDescriptor) (avroRecord, error) {
	d.named[m.FullName()] = true
	r := avroRecord{Type: "record", Name: string(m.Name()), Namespace: string(m.FullName().Parent()),
		Fields: []avroField{}}
	// Extensions are not known when the schema is derived.
	if m.ExtensionRanges().Len() > 0 {
		return r, fmt.Errorf("%s: Avro cannot represent extensions", m.FullName())
	}
	for _, f := range inWireOrder(m) {
		field, err := d.field(f)
		if err != nil {
			return r, fmt.Errorf("%s: %w", f.FullName(), err)
		}
		r.Fields = append(r.Fields, field)
	}
	return r, nil
}

// inWireOrder returns the fields in the order in which Go's Protobuf writes them: by number, with
// all members of a oneof at the position of the first.
func inWireOrder(m protoreflect.MessageDescriptor) []protoreflect.FieldDescriptor {
	// A synthetic oneof contains an optional field, which is written like any other.
	sortKey := func(f protoreflect.FieldDescriptor) protoreflect.FieldNumber {
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			return o.Fields().Get(0).Number()
		}
		return f.Number()
	}
	// Go's Protobuf lists fields in the order of the .proto file.
	var fields []protoreflect.FieldDescriptor
	for i := range m.Fields().Len() {
		fields = append(fields, m.Fields().Get(i))
	}
	// Within a oneof, at most one member is set, so their order among each other does not matter.
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int {
		return cmp.Or(cmp.Compare(sortKey(a), sortKey(b)), cmp.Compare(a.Number(), b.Number()))
	})
	return fields
}

// field returns the record field of a message field.
func (d *deriver) field(f protoreflect.FieldDescriptor) (avroField, error) {
	field := avroField{Name: string(f.Name()), Number: int32(f.Number())}
	if pii, _ := proto.GetExtension(f.Options(), eventv1.E_Pii).(bool); pii {
		field.Tags = []string{"PII"}
	}
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		field.Oneof = string(o.Name())
	}
	// The type of a single value: of a map's value, a list's item, or the field itself.
	value := f
	if f.IsMap() {
		value = f.MapValue()
		if f.MapKey().Kind() != protoreflect.StringKind {
			return field, errors.New("map keys must be strings in Avro: use a repeated message instead")
		}
	}
	of, zero, kind, err := d.value(value)
	if err != nil {
		return field, err
	}
	field.Kind = kind // empty if the Avro type implies it
	// Every field has a default, so that readers can add and remove fields.
	switch {
	case f.IsMap():
		field.Type, field.Default = avroMap{"map", of}, json.RawMessage("{}")
	case f.IsList():
		// Compile assumes that repeated scalars are packed.
		if !f.IsPacked() && kindOf(f).wire() != protowire.BytesType {
			return field, errors.New("unsupported repeated field that is not packed")
		}
		field.Type, field.Default = avroArray{"array", of}, json.RawMessage("[]")
	case f.HasPresence():
		field.Type, field.Default = nullable(of), json.RawMessage("null")
	default:
		field.Type, field.Default = of, json.RawMessage(zero)
	}
	return field, nil
}

// value returns the type of a single value, its zero, and its Protobuf type unless that is the
// default for the Avro type.
func (d *deriver) value(f protoreflect.FieldDescriptor) (of any, zero, declared string, err error) {
	switch k := kindOf(f); k {
	case timeKind: // a message in Protobuf, so its field has presence and needs no zero
		return avroLogical{Type: "long", LogicalType: "timestamp-micros"}, "", "", nil
	case moneyKind:
		// As for other messages, later uses refer to the first definition.
		if d.named[moneyName] {
			return moneyName, "", "", nil
		}
		d.named[moneyName] = true
		return avroRecord{Type: "record", Name: "Money", Namespace: "google.type", Fields: []avroField{
			{Name: "currency_code", Type: "string", Default: json.RawMessage(`""`), Doc: "ISO 4217"},
			{Name: "amount", Type: avroLogical{"bytes", "decimal", moneyDigits, moneyScale},
				Default: json.RawMessage(`"\u0000"`)},
		}}, "", "", nil
	case messageKind:
		// Avro allows only one definition of a type. Later uses refer to it by name.
		if d.named[f.Message().FullName()] {
			return string(f.Message().FullName()), "", "", nil
		}
		of, err := d.record(f.Message())
		return of, "", "", err
	case enumKind:
		e := f.Enum()
		first := e.Values().Get(0)
		// The first symbol is the default of the enum and of its fields, so it must be Protobuf's
		// zero.
		if first.Number() != 0 {
			return nil, "", "", fmt.Errorf("the first number of enum %s is not 0", e.FullName())
		}
		zero := fmt.Sprintf("%q", first.Name())
		if d.named[e.FullName()] {
			return string(e.FullName()), zero, "", nil
		}
		d.named[e.FullName()] = true
		a := avroEnum{Type: "enum", Name: string(e.Name()), Namespace: string(e.FullName().Parent()),
			Default: string(first.Name())}
		for i := range e.Values().Len() {
			v := e.Values().Get(i)
			// An alias has the same number. The first symbol of a number represents it.
			if slices.Contains(a.Numbers, int32(v.Number())) {
				continue
			}
			a.Symbols, a.Numbers = append(a.Symbols, string(v.Name())), append(a.Numbers, int32(v.Number()))
		}
		return a, zero, "", nil
	default:
		for _, t := range avroTypes {
			if t.kind != k {
				continue
			}
			// The attribute is only needed if the Avro type does not imply the kind.
			if k != suggested(t.avro) {
				declared = string(k)
			}
			return t.avro, zeros[t.avro], declared, nil
		}
		return nil, "", "", fmt.Errorf("not representable in Avro: %s", k)
	}
}

// zeros are the JSON defaults of Avro types: the values of absent fields in Protobuf.
var zeros = map[string]string{
	"boolean": "false", "int": "0", "long": "0", "float": "0", "double": "0", "string": `""`, "bytes": `""`,
}

// suggested returns the default kind for an Avro type.
func suggested(avroType string) kind {
	for _, t := range avroTypes {
		if t.avro == avroType {
			return t.kind
		}
	}
	return ""
}

// kindOf returns the kind of a field's values. Timestamp and Money are kinds of their own, because
// they are not represented like other messages.
func kindOf(f protoreflect.FieldDescriptor) kind {
	switch {
	case f.Kind() == protoreflect.MessageKind &&
		(f.Message().FullName() == moneyName || f.Message().FullName() == protoreflect.FullName(timeKind)):
		return kind(f.Message().FullName())
	default:
		return kind(f.Kind().String()) // kinds are named like Protobuf's; groups are not supported
	}
}
