// Package wire decodes Protobuf messages from the wire format directly into columns, without
// building the message. That takes a tenth of the time of a dynamic message, and half of that of a
// generated one.
//
// Compile makes a Plan from a message descriptor: the columns of the message, and how its fields
// are stored. Bind connects a Plan to columns and returns a Decoder, whose Append adds one message
// as a row.
//
// The columns have the same content as the message that proto.Unmarshal would return. If a field
// occurs twice, later occurrences win or are merged as Protobuf specifies. Fields that are unknown
// to the columns can be kept in a column of their own.
//
//	bool                                boolean
//	int32, sint32, sfixed32             int
//	int64, sint64, sfixed64             long
//	uint32, fixed32                     long
//	uint64, fixed64                     decimal(20, 0)
//	float, double                       float, double
//	string                              string; invalid UTF-8 is an error
//	bytes                               binary
//	enum                                string: the value's name, or its number if it has none
//	repeated, map                       list, map; empty if absent, which Protobuf cannot distinguish
//	message                             struct, null if absent; without fields, its column _present
//	                                    is true
//	google.protobuf.Timestamp           timestamptz, truncated to microseconds
//	google.protobuf.Duration            long, in nanoseconds
//	google.protobuf.StringValue, …      like the value, null if absent
//	google.type.Money                   decimal(38, 9), with the currency in <name>_currency; in a list
//	                                    or map struct<amount, currency>
//	a recursive message                 binary: the inner message in wire format
//
// A field whose absence Protobuf can represent (optional, in a oneof, or a message) is null if
// absent. Other absent fields have their default. All columns are optional in the schema, because
// other versions of the message may lack fields.
package wire

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/lake/columnar"
)

// UnknownColumn is the default name of the column for unknown fields.
const UnknownColumn = "_unknown"

// Options are settings of a plan that do not follow from the message.
type Options struct {
	// Unknown is the name of the column for unknown fields at any depth, or empty for no such
	// column. The column has a message in wire format that contains the unknown fields only, inside
	// the messages that they belong to. If an element of a list has unknown fields, all elements of
	// the list are included, so that indices are preserved. The column is null if there are no
	// unknown fields.
	Unknown string
	// Reserved are the names of the table's other columns.
	Reserved []string
}

// Limits of a message. Columns are limited because a few messages that contain each other can
// expand to any number of columns. The depth is what every Protobuf implementation supports.
const (
	maxColumns = 10_000
	maxDepth   = 100
)

// Plan is the mapping of a message to columns. It is immutable and safe for concurrent use.
type Plan struct {
	of      protoreflect.MessageDescriptor
	root    *message
	fields  []columnar.Field
	unknown bool // the last field is for unknown fields
}

// Compile plans the columns of a message.
func Compile(md protoreflect.MessageDescriptor, o Options) (*Plan, error) {
	c := compiler{}
	root, fields, err := c.message(md, "")
	if err != nil {
		return nil, fmt.Errorf("columns of %s: %w", md.FullName(), err)
	}
	p := &Plan{of: md, root: root, fields: fields, unknown: o.Unknown != ""}
	// The column for unknown fields comes last, which Bind relies on.
	if p.unknown {
		p.fields = append(p.fields, columnar.Field{
			Key: UnknownColumn, Name: o.Unknown, Type: iceberg.PrimitiveTypes.Binary,
			Doc: "fields that the other columns do not have, in Protobuf's wire format",
		})
	}
	if len(p.fields) == 0 {
		return nil, fmt.Errorf("columns of %s: the message has no fields", md.FullName())
	}
	for _, f := range p.fields {
		if slices.ContainsFunc(o.Reserved, func(name string) bool { return strings.EqualFold(name, f.Name) }) {
			return nil, fmt.Errorf("columns of %s: field %s has the name of a column that every table has; rename it",
				md.FullName(), f.Name)
		}
	}
	if err := distinct(p.fields); err != nil {
		return nil, fmt.Errorf("columns of %s: %w", md.FullName(), err)
	}
	return p, nil
}

// Fields returns the columns of the message, without ids.
func (p *Plan) Fields() []columnar.Field { return p.fields }

// compiler is the state of Compile.
type compiler struct {
	inside  []protoreflect.FullName // enclosing messages
	maps    int                     // number of enclosing maps
	columns int
}

// message plans the columns of the message at path.
func (c *compiler) message(md protoreflect.MessageDescriptor, path string) (*message, []columnar.Field, error) {
	if len(c.inside) == maxDepth {
		return nil, nil, fmt.Errorf("%s: messages are nested more than %d deep", path, maxDepth)
	}
	// Names of enclosing messages, by which recursion is noticed.
	c.inside = append(c.inside, md.FullName())
	defer func() { c.inside = c.inside[:len(c.inside)-1] }()
	m := &message{}
	var columns []columnar.Field
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		f, made, err := c.field(fd, join(path, string(fd.Name())))
		if err != nil {
			return nil, nil, err
		}
		// An optional field has a synthetic oneof of its own, which needs no check.
		if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
			f.oneofIndex = oneof.Index() + 1
		}
		m.fields = append(m.fields, f)
		columns = append(columns, made...)
	}
	if path == "" {
		return m, columns, nil
	}
	if len(columns) == 0 {
		columns = []columnar.Field{{
			Key: presentColumn, Name: presentColumn, Type: iceberg.PrimitiveTypes.Bool,
			Doc: "true: the message is there, and has no fields",
		}}
	}
	// Names must be distinct within a struct, as among the columns of a table.
	if err := distinct(columns); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, columns, nil
}

// presentColumn is the only column of a struct that would otherwise be empty, which Parquet does
// not support.
const presentColumn = "_present"

// distinct refuses names that differ only in case, which SQL engines cannot distinguish.
func distinct(fields []columnar.Field) error {
	names := map[string]string{}
	for _, f := range fields {
		folded := strings.ToLower(f.Name)
		if other, twice := names[folded]; twice {
			return fmt.Errorf("fields %s and %s would have the same column name; rename one", other, f.Name)
		}
		names[folded] = f.Name
	}
	return nil
}

// field plans a field and its columns: two for money, otherwise one.
func (c *compiler) field(fd protoreflect.FieldDescriptor, path string) (*field, []columnar.Field, error) {
	// The values of a map are planned like a field of their type.
	of := fd
	if fd.IsMap() {
		of = fd.MapValue()
		c.maps++
		defer func() { c.maps-- }()
	}
	f, column, err := c.value(of, path)
	if err != nil {
		return nil, nil, err
	}
	column.Key, column.Name, column.Doc = fmt.Sprint(fd.Number()), string(fd.Name()), comment(fd, column.Doc)
	columns := []columnar.Field{column}
	switch {
	case fd.IsMap():
		key, keyColumn, err := c.value(fd.MapKey(), path)
		if err != nil {
			return nil, nil, err
		}
		// Absent keys and values of an entry have their default.
		key.implicit, f.implicit, f.number, f.name = true, true, 2, "value"
		keyColumn.Name, keyColumn.Required = "key", true
		value := columns[0]
		value.Key, value.Name, value.Doc, value.Required = "", "value", "", true
		return &field{
				number: fd.Number(), name: string(fd.Name()),
				kind: entryKind, typ: protowire.BytesType, shape: mapped,
				message: &message{entry: true, fields: []*field{key, f}},
			}, []columnar.Field{{
				Key: columns[0].Key, Name: columns[0].Name, Doc: columns[0].Doc,
				Type: columnar.Map{Key: keyColumn, Value: value},
			}}, nil
	case fd.IsList():
		f.shape = listed
		f.packable = f.typ != protowire.BytesType && f.typ != protowire.StartGroupType
		element := column
		element.Key, element.Name, element.Doc, element.Required = "", "element", "", true
		columns[0].Type = columnar.List{Element: element}
	case f.kind == moneyKind:
		columns[0].Type = moneyType
		columns = append(columns, columnar.Field{
			Key: columns[0].Key + currencyKey, Name: column.Name + "_currency", Doc: "currency of " + column.Name,
			Type: iceberg.PrimitiveTypes.String,
		})
	default:
		f.implicit = !fd.HasPresence()
		f.required = fd.Cardinality() == protoreflect.Required
	}
	return f, columns, nil
}

// Columns of money.
const (
	amountField   = "amount"
	currencyField = "currency"
	currencyKey   = ".currency" // appended to the field's number
)

// Types of money, and of unsigned 64-bit integers.
var (
	moneyType    = iceberg.DecimalTypeOf(38, 9)
	unsignedType = iceberg.DecimalTypeOf(20, 0)
)

// value plans a single value of a field.
func (c *compiler) value(fd protoreflect.FieldDescriptor, path string) (*field, columnar.Field, error) {
	if c.columns++; c.columns > maxColumns {
		return nil, columnar.Field{}, fmt.Errorf("%s: the message has more than %d columns", path, maxColumns)
	}
	f := &field{number: fd.Number(), name: string(fd.Name())}
	// Scalars have a fixed mapping. Everything else is a message or a group.
	if s, ok := scalars[fd.Kind()]; ok {
		f.kind, f.typ = s.kind, s.wire
		if f.kind == enumKind {
			f.enum = newEnum(fd)
		}
		return f, columnar.Field{Type: s.column}, nil
	}
	f.typ = protowire.BytesType
	if fd.Kind() == protoreflect.GroupKind {
		f.typ = protowire.StartGroupType
	}
	md := fd.Message()
	if md.IsPlaceholder() {
		err := fmt.Errorf("%s: message %s is not defined: its file is missing", path, md.FullName())
		return nil, columnar.Field{}, err
	}
	switch name := md.FullName(); {
	case name == "google.protobuf.Timestamp":
		f.kind = timestampKind
		return f, columnar.Field{Type: iceberg.PrimitiveTypes.TimestampTz}, nil
	case name == "google.protobuf.Duration":
		f.kind = durationKind
		return f, columnar.Field{Type: iceberg.PrimitiveTypes.Int64, Doc: "nanoseconds"}, nil
	case name == "google.type.Money":
		f.kind = moneyKind
		return f, columnar.Field{Type: columnar.Struct{Fields: []columnar.Field{
			{Name: amountField, Type: moneyType},
			{Name: currencyField, Type: iceberg.PrimitiveTypes.String},
		}}}, nil
	// A recursive message would have infinitely many columns.
	case slices.Contains(c.inside, name):
		f.kind, f.descriptor, f.depth = opaqueKind, md, len(c.inside)+c.maps
		return f, columnar.Field{
			Type: iceberg.PrimitiveTypes.Binary,
			Doc:  fmt.Sprintf("%s in Protobuf's wire format, for it is inside itself here", name),
		}, nil
	}
	m, columns, err := c.message(md, path)
	if err != nil {
		return nil, columnar.Field{}, err
	}
	f.kind, f.message = messageKind, m
	// The wrapper's field becomes the column, which is null if the wrapper is absent.
	if wrappers[md.FullName()] && len(columns) == 1 {
		m.transparent = true
		return f, columnar.Field{Type: columns[0].Type}, nil
	}
	return f, columnar.Field{Type: columnar.Struct{Fields: columns}}, nil
}

// wrappers are the messages that are stored as their only field.
var wrappers = map[protoreflect.FullName]bool{
	"google.protobuf.BoolValue": true, "google.protobuf.BytesValue": true, "google.protobuf.StringValue": true,
	"google.protobuf.Int32Value": true, "google.protobuf.Int64Value": true, "google.protobuf.UInt32Value": true,
	"google.protobuf.UInt64Value": true, "google.protobuf.FloatValue": true, "google.protobuf.DoubleValue": true,
}

// comment returns a field's leading comment in the .proto file, if the descriptor has comments,
// followed by more.
func comment(fd protoreflect.FieldDescriptor, more string) string {
	var lines []string
	// Line breaks in comments have no meaning in a column description.
	for line := range strings.Lines(fd.ParentFile().SourceLocations().ByDescriptor(fd).LeadingComments) {
		lines = append(lines, strings.TrimSpace(line))
	}
	text := strings.TrimSpace(strings.Join(lines, " "))
	if text == "" || more == "" {
		return cmp.Or(text, more)
	}
	return text + " (" + more + ")"
}

// join appends a name to a dotted path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
