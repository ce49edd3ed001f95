package external

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/avro"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/infer"
	"github.com/millrace/millrace/lake/wire"
)

// Subject identifies the schemas of a topic's values.
type Subject struct {
	Name    string // empty: the topic's default, "TOPIC-value"
	Message string // for Protobuf: full name of the message; empty: the first one in the file
	Times   bool   // for JSON: convert strings that are times
}

// Registered declares a table for a topic of values that are framed for a schema registry, in Avro,
// Protobuf or JSON. Its columns are those of the subject's newest schema. It gains columns when
// values with other schemas arrive. Columns that a value's schema lacks are null. If a schema is
// incompatible with the table, its values become dead letters.
func Registered(
	ctx context.Context, name lake.Name, topic string, of Subject, client *registry.Client, options ...Option,
) (declare.Table, error) {
	with := layoutOf(options)
	if of.Name == "" {
		of.Name = registry.Subject(topic)
	}
	// The newest schema determines the initial columns and, for Protobuf, the message.
	latest, err := client.Latest(ctx, of.Name)
	if err != nil {
		return declare.Table{}, err
	}
	all := &schemas{
		client: client, with: with, message: protoreflect.FullName(of.Message), known: map[int]*schema{},
		json: jsonOptions(with, of.Times),
	}
	// Confluent's convention: the first message of the file is the value's type.
	if latest.Type == registry.TypeProtobuf && of.Message == "" {
		if all.message, err = firstMessage(ctx, latest); err != nil {
			return declare.Table{}, fmt.Errorf("subject %s: schema %d: %w", of.Name, latest.ID, err)
		}
	}
	first := all.read(ctx, latest)
	t := declared(name, topic,
		fmt.Sprintf("Every value on the topic %s, by the schemas of the subject %s.", topic, of.Name))
	t.Columns, t.Grows = slices.Concat(first.fields, with.columns()), true
	// The table cannot be created now, but an existing one can be landed: its values may have other
	// schemas.
	if first.bad != nil {
		t.Columns, t.Unready = with.columns(), fmt.Errorf("subject %s: %w", of.Name, first.bad)
	}
	// The contents of JSON schemas are not used: the columns follow from the values. What has no
	// column goes into one more.
	if first.json {
		t.Columns = append(t.Columns, all.json.ExtraField())
	}
	t.Rows = func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) { return all.rows(to) }
	return t, nil
}

// firstMessage returns the name of the first message in a Protobuf schema.
func firstMessage(ctx context.Context, s registry.Schema) (protoreflect.FullName, error) {
	file, err := registry.CompileProto(ctx, s)
	if err != nil {
		return "", err
	}
	md, err := registry.MessageAt(file, []int{0})
	if err != nil {
		return "", err
	}
	return md.FullName(), nil
}

// schemas are the schemas met in a topic's values. All landers of the table in this process share
// them.
type schemas struct {
	client  *registry.Client
	with    layout
	message protoreflect.FullName // for Protobuf: the message that the table is for
	json    infer.Options

	mu sync.Mutex
	// known has the schemas by id. mu also guards their bad, which refuse sets later.
	known map[int]*schema
}

// schema is a registered schema, prepared for decoding.
type schema struct {
	id     int
	fields []columnar.Field // empty for JSON, whose columns follow from values
	avro   *avro.Plan
	proto  *wire.Plan
	file   protoreflect.FileDescriptor
	json   bool
	bad    error // permanent reason why its values cannot be landed in this table
}

// schema returns the schema with an id, from memory or the registry.
func (s *schemas) schema(ctx context.Context, id int) (*schema, error) {
	s.mu.Lock()
	// The lock is not held while the registry is asked, so two landers may fetch the same schema.
	// read keeps the first.
	have := s.known[id]
	s.mu.Unlock()
	if have != nil {
		return have, nil
	}
	registered, err := s.client.Schema(ctx, id)
	if err != nil { // unknown ids are not cached: they may be registered later
		return nil, err
	}
	return s.read(ctx, registered), nil
}

// read prepares a schema and caches the result, including failures.
func (s *schemas) read(ctx context.Context, registered registry.Schema) *schema {
	made := &schema{id: registered.ID}
	// A failure is kept in made.bad: the schema is immutable, so compiling it again would fail
	// alike.
	switch registered.Type {
	case registry.TypeAvro:
		var references []string
		for _, r := range registered.References {
			references = append(references, r.Text)
		}
		if made.avro, made.bad = avro.Compile(registered.Text, references...); made.bad == nil {
			made.fields, made.bad = made.avro.Fields(), s.with.free(made.avro.Fields())
		}
	case registry.TypeProtobuf:
		made.bad = s.compileProto(ctx, made, registered)
	case registry.TypeJSON:
		made.json = true
	default:
		made.bad = fmt.Errorf("schema type %s is not supported", registered.Type)
	}
	if made.bad != nil {
		made.bad = fmt.Errorf("schema %d: %w", made.id, made.bad)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Another lander was faster. All must share one schema, since refuse changes it.
	if first := s.known[made.id]; first != nil {
		return first
	}
	s.known[made.id] = made
	return made
}

// free returns an error if a field has a reserved name.
func (l layout) free(fields []columnar.Field) error {
	for _, f := range fields {
		if l.reserves(f.Name) || f.Name == extraColumn {
			return fmt.Errorf("field %s has the name of a column that the table always has: rename the field", f.Name)
		}
	}
	return nil
}

// compileProto prepares a Protobuf schema, which must have the table's message.
func (s *schemas) compileProto(ctx context.Context, made *schema, registered registry.Schema) error {
	file, err := registry.CompileProto(ctx, registered)
	if err != nil {
		return err
	}
	made.file = file
	// The file may have further messages. Their values become dead letters.
	for md := range messages(file.Messages()) {
		if md.FullName() != s.message {
			continue
		}
		options := wire.Options{Unknown: wire.UnknownColumn, Reserved: append(s.with.reserved(), extraColumn)}
		if made.proto, err = wire.Compile(md, options); err != nil {
			return err
		}
		made.fields = made.proto.Fields()
		return nil
	}
	return fmt.Errorf("it has no message %s, which the table requires", s.message)
}

// refuse records why a schema is incompatible with the table.
func (s *schemas) refuse(of *schema, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of.bad = fmt.Errorf("schema %d is incompatible with the table: %w", of.id, reason)
}

// reason returns why a schema's values cannot be landed, or nil.
func (s *schemas) reason(of *schema) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return of.bad
}

// newestOfProto returns the usable Protobuf schemas, newest first. Values of one can be decoded
// with another, because Protobuf schemas are compatible on the wire.
func (s *schemas) newestOfProto() []*schema {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*schema
	for _, one := range s.known {
		if one.proto != nil && one.bad == nil {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b *schema) int { return b.id - a.id })
	return all
}

// rows returns the Rows of one lander. Each binds the shared schemas to its own columns.
func (s *schemas) rows(to *columnar.Columns) (declare.Rows, error) {
	at, err := s.with.bind(to)
	return &registeredRows{all: s, to: to, record: at, bound: map[int]*bound{}}, err
}

// registeredRows appends values according to their schemas.
type registeredRows struct {
	all    *schemas
	to     *columnar.Columns
	record recordColumns
	bound  map[int]*bound
}

// bound is a schema that is bound to the table's columns.
type bound struct {
	append func(value []byte) error
	others []columnar.Column // columns that the schema lacks
}

// Append implements declare.Rows.
func (x *registeredRows) Append(ctx context.Context, r declare.Record) (declare.Appended, error) {
	if r.Value == nil {
		return declare.Appended{}, errNoValue
	}
	id, value, err := registry.CutFrame(r.Value)
	if err != nil {
		return declare.Appended{}, err
	}
	// If the registry is unavailable, the record waits. If it does not know the schema, the record
	// becomes a dead letter.
	of, err := x.all.schema(ctx, id)
	if err == nil {
		err = x.all.reason(of)
	}
	if err != nil {
		return declare.Appended{}, err
	}
	// Schemas are bound once per set of columns: a grown table gets a new Rows.
	b := x.bound[id]
	if b == nil {
		if b, err = x.bind(of); err != nil {
			return declare.Appended{}, err
		}
		x.bound[id] = b
	}
	// Protobuf values name their message within the file.
	if of.file != nil {
		if value, err = x.message(of, value); err != nil {
			return declare.Appended{}, fmt.Errorf("schema %d: %w", id, err)
		}
	}
	if err := b.append(value); err != nil {
		return declare.Appended{}, fmt.Errorf("schema %d: %w", id, err)
	}
	for _, col := range b.others {
		col.AppendNull()
	}
	return x.record.append(r), nil
}

// message removes the message index from a value and checks that it is the table's message.
func (x *registeredRows) message(of *schema, value []byte) ([]byte, error) {
	path, value, err := registry.CutMessage(value)
	if err != nil {
		return nil, err
	}
	md, err := registry.MessageAt(of.file, path)
	if err != nil {
		return nil, err
	}
	if md.FullName() != x.all.message {
		return nil, fmt.Errorf("the value is a %s, but the table is for %s: land it in another table",
			md.FullName(), x.all.message)
	}
	return value, nil
}

// bind binds a schema to the columns. It returns declare.ErrGrow if columns are missing.
func (x *registeredRows) bind(of *schema) (*bound, error) {
	if of.json {
		objects, err := x.all.json.Bind(x.to)
		if err != nil {
			return nil, fmt.Errorf("schema %d is JSON, but the table is not: %w", of.id, err)
		}
		return &bound{append: func(value []byte) error { return appendJSON(objects, value) }}, nil
	}
	_, mine := x.all.with.split(x.to.Fields())
	// Compare with the columns that the table would need for the schema.
	need, err := evolution.Union(mine, of.fields)
	switch {
	case err != nil:
		x.all.refuse(of, err)
		return nil, x.all.reason(of)
	// The union differs from the existing columns, so the schema needs more of them.
	case !reflect.DeepEqual(need, mine):
		return nil, fmt.Errorf("schema %d: %w", of.id, declare.ErrGrow)
	// Avro values are decoded with exactly the schema that wrote them.
	case of.avro != nil:
		d, err := of.avro.Bind(x.to)
		if err != nil {
			return nil, fmt.Errorf("schema %d: %w", of.id, err)
		}
		return &bound{append: d.Append, others: x.others(of.fields)}, nil
	}
	var errs []error
	// If a field's type was widened, a newer schema fits the column.
	for _, by := range append([]*schema{of}, x.all.newestOfProto()...) {
		d, err := by.proto.Bind(x.to)
		if err == nil {
			return &bound{append: d.Append, others: x.others(by.fields)}, nil
		}
		errs = append(errs, fmt.Errorf("schema %d: %w", by.id, err))
	}
	return nil, errors.Join(errs...)
}

// split separates the columns for the record itself, and JSON's extra column, from those of values.
func (l layout) split(all []columnar.Field) (fixed, mine []columnar.Field) {
	for _, f := range all {
		if l.reserves(f.Name) || f.Name == extraColumn && f.Key == "" {
			fixed = append(fixed, f)
		} else {
			mine = append(mine, f)
		}
	}
	return fixed, mine
}

// others returns the value columns that do not belong to the given fields.
func (x *registeredRows) others(fields []columnar.Field) (cols []columnar.Column) {
	// Columns that the schema fills. All others become null.
	filled := evolution.Match(x.to.Fields(), fields)
	for i, f := range x.to.Fields() {
		if !x.all.with.reserves(f.Name) && !slices.Contains(filled, i) {
			cols = append(cols, x.to.Column(i))
		}
	}
	return cols
}

// Grow implements declare.Grower.
func (x *registeredRows) Grow(
	ctx context.Context, have []columnar.Field, records iter.Seq[declare.Record],
) ([]columnar.Field, error) {
	// Only columns of values may grow.
	fixed, mine := x.all.with.split(have)
	var objects []*infer.Object
	met := map[int]bool{}
	for r := range records {
		id, value, err := registry.CutFrame(r.Value)
		if err != nil {
			continue // Append reports it
		}
		of, err := x.all.schema(ctx, id)
		if errors.Is(err, registry.ErrUnavailable) {
			break // records before it get their columns
		}
		switch {
		// Append reports these.
		case err != nil, x.all.reason(of) != nil:
		case of.json:
			// Collected, so that one step adds the columns for all objects.
			if object, err := infer.Parse(value); err == nil {
				objects = append(objects, object)
			}
		case !met[id]:
			met[id] = true
			need, err := evolution.Union(mine, of.fields)
			if err != nil {
				x.all.refuse(of, err)
				continue
			}
			mine = need
		}
	}
	// The columns for the record itself come last, as in Registered.
	want := slices.Concat(mine, fixed)
	if len(objects) > 0 {
		want, _ = x.all.json.Grow(want, objects...)
	}
	return want, nil
}
