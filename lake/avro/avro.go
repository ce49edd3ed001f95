// Package avro decodes Avro's binary encoding directly into columns, as package wire does for
// Protobuf. The columns follow from the schema that a value was written with. Compile makes a Plan
// from a schema, and Bind connects it to columns and returns a Decoder.
//
//	null                         no column
//	boolean, int, long           boolean, int, long
//	float, double                float, double
//	string, bytes, fixed         string, binary, fixed
//	enum                         string: the symbol
//	array, map                   list, map
//	record                       struct; one without fields has the column _present, true
//	[null, T]                    nullable T
//	any other union              struct with a column per branch, named after its type; all but one
//	                             are null
//	a recursive type             string: Avro's JSON encoding of the inner value
//	decimal                      decimal up to 38 digits, otherwise the underlying type
//	date                         date; like all times, in the years 1 to 9999
//	timestamp-millis, -micros    timestamptz
//	timestamp-nanos              long: nanoseconds since 1970, because format 2 of Iceberg has no
//	                             type for them
//	time-millis, -micros         long: microseconds since midnight
//	uuid                         uuid
//
// Other logical types are treated as their underlying type and mentioned in the column's
// description. Columns are identified by name, as fields are in Avro, and renamed according to
// aliases. If the root type is not a record, the only column is called value. All columns are
// optional, because other schemas of the subject may lack the field.
package avro

import (
	"fmt"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/twmb/avro"

	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
)

// Limits of a schema, see package wire.
const (
	maxColumns = 10_000
	maxDepth   = 100
	maxDigits  = 38
)

// Plan is the mapping of a schema to columns. It is immutable and safe for concurrent use.
type Plan struct {
	root   *node
	fields []columnar.Field
}

// Compile plans the columns of a schema. references are the schemas that it refers to, each after
// its own references.
func Compile(schema string, references ...string) (*Plan, error) {
	var cache avro.SchemaCache
	// References must be parsed first, so that the schema can refer to their types.
	for _, r := range references {
		if _, err := cache.Parse(r); err != nil {
			return nil, fmt.Errorf("referenced schema: not an Avro schema: %w", err)
		}
	}
	parsed, err := cache.Parse(schema)
	if err != nil {
		return nil, fmt.Errorf("not an Avro schema: %w", err)
	}
	// Named types may be used before the place where this package meets their definition.
	c := compiler{named: map[string]*avro.SchemaNode{}, inside: map[string]bool{}}
	// Parsing again returns the cached schema.
	for _, r := range references {
		known, err := cache.Parse(r)
		if err != nil {
			return nil, err
		}
		c.know(known.Root())
	}
	root := parsed.Root()
	c.know(root)
	// Wrap other types in a record with one field, for a column to hold them.
	if root.Type != "record" {
		root = &avro.SchemaNode{Type: "record", Fields: []avro.SchemaField{{Name: "value", Type: *root}}}
	}
	p := &Plan{}
	// The plan keeps the order of the schema, which is that of the encoding.
	if p.root, p.fields, err = c.record(root, ""); err != nil {
		return nil, err
	}
	return p, nil
}

// Fields returns the columns, without ids. A record without fields has none; its rows only have the
// record's own columns.
func (p *Plan) Fields() []columnar.Field { return p.fields }

// kind is a type with its conversion.
type kind uint8

// The kinds. Those of times determine the conversion to the column's unit.
const (
	nullKind kind = iota
	boolKind
	intKind
	longKind
	dateKind
	millisKind // long in milliseconds, stored in microseconds
	microsKind // long in microseconds that is a time
	dayMillisKind
	floatKind
	doubleKind
	stringKind
	bytesKind
	fixedKind
	decimalKind
	uuidKind
	enumKind
	arrayKind
	mapKind
	recordKind
	unionKind
	opaqueKind
)

// node is a type of the writer's schema.
type node struct {
	kind     kind
	name     string // of a record field or union branch
	size     int    // of fixed; 0 for bytes, which carry their length
	digits   int    // precision of decimal
	symbols  []string
	children []*node // fields, union branches in order, or the one type of array and map items
	nullable bool    // a union of null and this type
	nullAt   int     // index of null in that union
	opaque   *avro.Schema
	within   *bounds // valid range of an int or long; nil: any
}

// bounds is the valid range of a number that represents a time, in the schema's unit.
type bounds struct {
	least, most int64
	of          string // what it represents, for errors
}

// Valid ranges of times that are stored without conversion, or as integers.
var (
	dayMillis   = &bounds{0, timeunit.MicrosPerDay/1000 - 1, "milliseconds of a day"}
	dayMicros   = &bounds{0, timeunit.MicrosPerDay - 1, "microseconds of a day"}
	localMillis = &bounds{
		timeunit.MinMicro / 1000, timeunit.MaxMicro / 1000, "milliseconds since 1970 in the years 1 to 9999",
	}
	localMicros = &bounds{timeunit.MinMicro, timeunit.MaxMicro, "microseconds since 1970 in the years 1 to 9999"}
)

// compiler is the state of Compile.
type compiler struct {
	named   map[string]*avro.SchemaNode // by full name
	inside  map[string]bool             // enclosing records
	within  string                      // current namespace
	depth   int
	columns int
}

// fullName returns the name of a type with its namespace.
func fullName(n *avro.SchemaNode) string {
	if n.Namespace == "" || strings.Contains(n.Name, ".") {
		return n.Name
	}
	return n.Namespace + "." + n.Name
}

// know records the named types that a schema defines.
func (c *compiler) know(n *avro.SchemaNode) {
	if n == nil {
		return
	}
	switch n.Type {
	case "record", "error", "enum", "fixed":
		c.named[fullName(n)] = n
	}
	for i := range n.Fields {
		c.know(&n.Fields[i].Type)
	}
	for i := range n.Branches {
		c.know(&n.Branches[i])
	}
	c.know(n.Items)
	c.know(n.Values)
}

// resolve returns the definition of a named type, or the node itself.
func (c *compiler) resolve(n *avro.SchemaNode) *avro.SchemaNode {
	// A name without a dot first refers to the enclosing namespace.
	if c.within != "" && !strings.Contains(n.Type, ".") {
		if known := c.named[c.within+"."+n.Type]; known != nil {
			return known
		}
	}
	if known := c.named[n.Type]; known != nil {
		return known
	}
	return n
}

// record plans the columns of a record.
func (c *compiler) record(n *avro.SchemaNode, path string) (*node, []columnar.Field, error) {
	full := fullName(n)
	// Restored at the end, as records are nested.
	outer := c.within
	// Enclosing records, by which recursion is noticed.
	c.inside[full] = true
	// Names without a namespace refer to that of the enclosing record.
	c.within = full[:max(0, strings.LastIndexByte(full, '.'))]
	defer func() {
		delete(c.inside, full)
		c.within = outer
	}()
	out := &node{kind: recordKind}
	var columns []columnar.Field
	for i := range n.Fields {
		f := &n.Fields[i]
		child, column, err := c.value(&f.Type, join(path, f.Name))
		if err != nil {
			return nil, nil, err
		}
		child.name = f.Name
		out.children = append(out.children, child)
		// A field that is always null has no column, but must be skipped on the wire.
		if child.kind == nullKind {
			continue
		}
		column.Name, column.Aliases, column.Required = f.Name, f.Aliases, false
		column.Doc = described(f.Doc, column.Doc)
		columns = append(columns, column)
	}
	return out, columns, distinct(path, columns)
}

// described joins a field's documentation and a remark.
func described(doc, more string) string {
	switch {
	case doc == "":
		return more
	case more == "":
		return doc
	}
	return doc + " (" + more + ")"
}

// distinct refuses names that differ only in case, which SQL engines cannot distinguish.
func distinct(path string, fields []columnar.Field) error {
	// Original names by their lower-case form.
	names := map[string]string{}
	for _, f := range fields {
		folded := strings.ToLower(f.Name)
		if other, twice := names[folded]; twice {
			return fmt.Errorf("%s: has the same column name as field %s", join(path, f.Name), other)
		}
		names[folded] = f.Name
	}
	return nil
}

// presentColumn is the only column of a struct that would otherwise be empty, which Parquet does
// not support.
const presentColumn = "_present"

// group returns the struct for columns.
func group(columns []columnar.Field) columnar.Struct {
	if len(columns) == 0 {
		columns = []columnar.Field{{
			Name: presentColumn, Type: iceberg.PrimitiveTypes.Bool, Doc: "true: the record is there, and has no fields",
		}}
	}
	return columnar.Struct{Fields: columns}
}

// value plans a value and its column, which has no name yet.
func (c *compiler) value(n *avro.SchemaNode, path string) (*node, columnar.Field, error) {
	if c.columns++; c.columns > maxColumns {
		return nil, columnar.Field{}, fmt.Errorf("%s: the schema has more than %d columns", path, maxColumns)
	}
	if c.depth++; c.depth > maxDepth {
		return nil, columnar.Field{}, fmt.Errorf("%s: types are nested more than %d deep", path, maxDepth)
	}
	defer func() { c.depth-- }()
	// A reference to a named type is replaced by its definition.
	n = c.resolve(n)
	switch n.Type {
	case "union":
		return c.union(n, path)
	case "record", "error":
		// A recursive record would have infinitely many columns.
		if c.inside[fullName(n)] {
			return c.opaque(n, path)
		}
		r, columns, err := c.record(n, path)
		return r, columnar.Field{Type: group(columns), Required: true}, err
	// Elements keep their own nullability. The list itself is never null here.
	case "array":
		item, column, err := c.value(n.Items, join(path, "element"))
		if err == nil && item.kind == nullKind {
			err = fmt.Errorf("%s: an array of nulls cannot be stored", path)
		}
		column.Name, column.Doc = "element", ""
		list := columnar.Field{Type: columnar.List{Element: column}, Required: true}
		return &node{kind: arrayKind, children: []*node{item}}, list, err
	case "map":
		item, column, err := c.value(n.Values, join(path, "value"))
		if err == nil && item.kind == nullKind {
			err = fmt.Errorf("%s: a map of nulls cannot be stored", path)
		}
		column.Name, column.Doc = "value", ""
		key := columnar.Field{Name: "key", Type: iceberg.PrimitiveTypes.String, Required: true}
		entries := columnar.Field{Type: columnar.Map{Key: key, Value: column}, Required: true}
		return &node{kind: mapKind, children: []*node{item}}, entries, err
	case "enum":
		column := columnar.Field{Type: iceberg.PrimitiveTypes.String, Required: true}
		return &node{kind: enumKind, symbols: n.Symbols}, column, nil
	case "null":
		return &node{kind: nullKind}, columnar.Field{}, nil
	}
	return primitive(n, path)
}

// bounded sets the valid range of a node.
func bounded(by *bounds) func(*node, columnar.Field, error) (*node, columnar.Field, error) {
	return func(n *node, f columnar.Field, err error) (*node, columnar.Field, error) {
		n.within = by
		return n, f, err
	}
}

// primitive plans a type without parts, by its logical type if that is supported.
func primitive(n *avro.SchemaNode, path string) (*node, columnar.Field, error) {
	// Columns are required until record or union makes them optional.
	of := func(k kind, t columnar.Type, doc string) (*node, columnar.Field, error) {
		column := columnar.Field{Type: t, Doc: doc, Required: true}
		return &node{kind: k, size: n.Size, digits: n.Precision}, column, nil
	}
	switch logical := n.LogicalType; {
	// Logical types with an Iceberg equivalent come first. The others become their underlying type.
	case logical == "decimal" && n.Precision <= maxDigits && (n.Type == "bytes" || n.Type == "fixed"):
		return of(decimalKind, iceberg.DecimalTypeOf(n.Precision, n.Scale), "")
	case logical == "date" && n.Type == "int":
		return of(dateKind, iceberg.PrimitiveTypes.Date, "")
	case logical == "timestamp-millis" && n.Type == "long":
		return of(millisKind, iceberg.PrimitiveTypes.TimestampTz, "")
	case logical == "timestamp-micros" && n.Type == "long":
		return of(microsKind, iceberg.PrimitiveTypes.TimestampTz, "")
	case logical == "time-millis" && n.Type == "int":
		return bounded(dayMillis)(of(dayMillisKind, iceberg.PrimitiveTypes.Int64, "microseconds since midnight"))
	case logical == "time-micros" && n.Type == "long":
		return bounded(dayMicros)(of(longKind, iceberg.PrimitiveTypes.Int64, "microseconds since midnight"))
	case logical == "local-timestamp-millis" && n.Type == "long":
		return bounded(localMillis)(of(longKind, iceberg.PrimitiveTypes.Int64, logical))
	case logical == "local-timestamp-micros" && n.Type == "long":
		return bounded(localMicros)(of(longKind, iceberg.PrimitiveTypes.Int64, logical))
	case logical == "timestamp-nanos" && n.Type == "long":
		return of(longKind, iceberg.PrimitiveTypes.Int64, "timestamp-nanos: nanoseconds since 1970, UTC")
	case logical == "uuid" && (n.Type == "string" || n.Type == "fixed" && n.Size == 16):
		return of(uuidKind, iceberg.PrimitiveTypes.UUID, "")
	}
	// Types without a supported logical type.
	switch n.Type {
	case "boolean":
		return of(boolKind, iceberg.PrimitiveTypes.Bool, n.LogicalType)
	case "int":
		return of(intKind, iceberg.PrimitiveTypes.Int32, n.LogicalType)
	case "long":
		return of(longKind, iceberg.PrimitiveTypes.Int64, n.LogicalType)
	case "float":
		return of(floatKind, iceberg.PrimitiveTypes.Float32, n.LogicalType)
	case "double":
		return of(doubleKind, iceberg.PrimitiveTypes.Float64, n.LogicalType)
	case "string":
		return of(stringKind, iceberg.PrimitiveTypes.String, n.LogicalType)
	case "bytes":
		return of(bytesKind, iceberg.PrimitiveTypes.Binary, n.LogicalType)
	case "fixed":
		if n.Size < 1 {
			return nil, columnar.Field{}, fmt.Errorf("%s: fixed needs at least one byte", path)
		}
		return of(fixedKind, iceberg.FixedTypeOf(n.Size), n.LogicalType)
	}
	return nil, columnar.Field{}, fmt.Errorf("%s: unknown type %q", path, n.Type)
}

// union plans a union: [null, T] becomes a nullable T, and others a struct with a column per
// branch.
func (c *compiler) union(n *avro.SchemaNode, path string) (*node, columnar.Field, error) {
	nullAt := -1
	// A union has null at most once.
	for i := range n.Branches {
		if n.Branches[i].Type == "null" {
			nullAt = i
		}
	}
	// The usual way of making a field optional.
	if nullAt >= 0 && len(n.Branches) == 2 {
		inner, column, err := c.value(&n.Branches[1-nullAt], path)
		if err != nil {
			return nil, column, err
		}
		if !inner.nullable { // Avro forbids unions directly in unions
			inner.nullable, inner.nullAt, column.Required = true, nullAt, false
			return inner, column, nil
		}
		return nil, column, fmt.Errorf("%s: a union within a union is not allowed", path)
	}
	// A general union: one column per branch, and null for the branches that do not apply.
	out := &node{kind: unionKind}
	var columns []columnar.Field
	for i := range n.Branches {
		branch := c.resolve(&n.Branches[i])
		name := branch.Type
		if branch.Name != "" {
			name = branch.Name[strings.LastIndexByte(branch.Name, '.')+1:]
		}
		child, column, err := c.value(&n.Branches[i], join(path, name))
		if err != nil {
			return nil, columnar.Field{}, err
		}
		child.name = name
		out.children = append(out.children, child)
		if child.kind != nullKind {
			column.Name, column.Required = name, false
			columns = append(columns, column)
		}
	}
	return out, columnar.Field{Type: group(columns), Required: nullAt < 0}, distinct(path, columns)
}

// opaque plans a recursive type, which is stored as JSON.
func (c *compiler) opaque(n *avro.SchemaNode, path string) (*node, columnar.Field, error) {
	// The value is decoded by the library, which needs the definition of the type.
	s, err := n.Schema()
	if err != nil {
		return nil, columnar.Field{}, fmt.Errorf("%s: %w", path, err)
	}
	return &node{kind: opaqueKind, opaque: s}, columnar.Field{
		Type: iceberg.PrimitiveTypes.String, Required: true,
		Doc: fullName(n) + " as JSON, for it is inside itself here",
	}, nil
}

// join appends a name to a dotted path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
