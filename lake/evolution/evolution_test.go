package evolution_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

var (
	text    = iceberg.PrimitiveTypes.String
	whole   = iceberg.PrimitiveTypes.Int32
	long    = iceberg.PrimitiveTypes.Int64
	single  = iceberg.PrimitiveTypes.Float32
	double  = iceberg.PrimitiveTypes.Float64
	decimal = iceberg.DecimalTypeOf
)

func field(key, name string, t columnar.Type) columnar.Field {
	return columnar.Field{Key: key, Name: name, Type: t}
}

func required(f columnar.Field) columnar.Field {
	f.Required = true
	return f
}

func group(fields ...columnar.Field) columnar.Struct { return columnar.Struct{Fields: fields} }

func list(t columnar.Type) columnar.List { return columnar.List{Element: field("", "element", t)} }

func TestEvolution(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		before, want []columnar.Field
		schema       string // that the table gets: "id name type, …", ! for required
		changes      []string
		refused      string
	}{
		{
			name:   "the same columns",
			before: []columnar.Field{required(field("1", "id", text)), field("2", "total", decimal(38, 9))},
			want:   []columnar.Field{required(field("1", "id", text)), field("2", "total", decimal(38, 9))},
			schema: "1 id string!, 2 total decimal(38, 9)",
		}, {
			name:    "a new field",
			before:  []columnar.Field{field("1", "id", text)},
			want:    []columnar.Field{field("1", "id", text), required(field("2", "note", text))},
			schema:  "1 id string, 2 note string",
			changes: []string{"column note is new: string"},
		}, {
			name:    "a new field before others, and inside a group and a list",
			before:  []columnar.Field{field("1", "placed", group(field("1", "lines", list(group(field("1", "sku", text))))))},
			want:    []columnar.Field{field("3", "by", text), field("1", "placed", group(field("1", "lines", list(group(field("4", "n", long), field("1", "sku", text)))), field("2", "at", text)))},
			schema:  "1 placed struct<2 lines list<3 struct<4 sku string, 5 n long>>, 6 at string>, 7 by string",
			changes: []string{"column placed.lines.element.n is new: long", "column placed.at is new: string", "column by is new: string"},
		}, {
			name:    "a new event type",
			before:  []columnar.Field{field("1", "placed", group(field("1", "id", text)))},
			want:    []columnar.Field{field("1", "placed", group(field("1", "id", text))), field("2", "returned", group(field("1", "id", text), field("2", "why", text)))},
			schema:  "1 placed struct<2 id string>, 3 returned struct<4 id string, 5 why string>",
			changes: []string{"column returned is new: struct<id string, why string>"},
		}, {
			name:    "a new name",
			before:  []columnar.Field{field("1", "ref", text)},
			want:    []columnar.Field{field("1", "reference", text)},
			schema:  "1 reference string",
			changes: []string{"column ref is renamed to reference"},
		}, {
			name:    "two fields swap their names",
			before:  []columnar.Field{field("1", "a", text), field("2", "b", long)},
			want:    []columnar.Field{field("1", "b", text), field("2", "a", long)},
			schema:  "1 b string, 2 a long",
			changes: []string{"column a is renamed to b", "column b is renamed to a"},
		}, {
			name:    "types grow",
			before:  []columnar.Field{field("1", "a", whole), field("2", "b", single), field("3", "c", decimal(10, 2)), field("4", "d", list(whole))},
			want:    []columnar.Field{field("1", "a", long), field("2", "b", double), field("3", "c", decimal(20, 2)), field("4", "d", list(long))},
			schema:  "1 a long, 2 b double, 3 c decimal(20, 2), 4 d list<5 long>",
			changes: []string{"column a is widened from int to long", "column b is widened from float to double", "column c is widened from decimal(10, 2) to decimal(20, 2)", "column d.element is widened from int to long"},
		}, {
			name:    "a field is gone",
			before:  []columnar.Field{field("1", "a", text), required(field("2", "b", text))},
			want:    []columnar.Field{field("1", "a", text)},
			schema:  "1 a string, 2 b string",
			changes: []string{"column b is no longer written and becomes nullable"},
		}, {
			name:    "a column without a key gets one",
			before:  []columnar.Field{field("", "a", text)},
			want:    []columnar.Field{field("7", "a", text)},
			schema:  "1 a string",
			changes: []string{"column a gets the key 7"},
		}, {
			name:    "what a type cannot become",
			before:  []columnar.Field{field("1", "placed", group(field("1", "n", text)))},
			want:    []columnar.Field{field("1", "placed", group(field("1", "n", long)))},
			refused: "column placed.n: the table has string and this program writes long",
		}, {
			name:    "a type does not shrink",
			before:  []columnar.Field{field("1", "n", long)},
			want:    []columnar.Field{field("1", "n", whole)},
			refused: "column n: the table has long and this program writes int",
		}, {
			name:    "another scale",
			before:  []columnar.Field{field("1", "n", decimal(10, 2))},
			want:    []columnar.Field{field("1", "n", decimal(20, 3))},
			refused: "column n: the table has decimal(10, 2)",
		}, {
			name:    "a field becomes repeated",
			before:  []columnar.Field{field("1", "n", long)},
			want:    []columnar.Field{field("1", "n", list(long))},
			refused: "column n: the table has long and this program writes list<long>",
		}, {
			name:    "a new field takes the name of one that is gone",
			before:  []columnar.Field{field("1", "note", text)},
			want:    []columnar.Field{field("2", "note", text)},
			refused: "column note: the table already has a column of that name",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			made, err := evolution.New(c.before, nil)
			if err != nil {
				t.Fatal(err)
			}
			step, err := evolution.Of(made.Schema, made.LastID, made.Keys, c.want)
			if c.refused != "" {
				if refused := (*evolution.RefusedError)(nil); !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), c.refused) {
					t.Fatalf("got %v, want refusal %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := show(step.Schema.Fields()); got != c.schema {
				t.Errorf("schema %s\nwant   %s", got, c.schema)
			}
			if !slices.Equal(step.Changes, c.changes) {
				t.Errorf("changes %q\nwant    %q", step.Changes, c.changes)
			}
		})
	}
}

func show(fields []iceberg.NestedField) string {
	all := make([]string, len(fields))
	for i, f := range fields {
		all[i] = fmt.Sprintf("%d %s %s", f.ID, f.Name, showType(f.Type))
		if f.Required {
			all[i] += "!"
		}
	}
	return strings.Join(all, ", ")
}

func showType(t iceberg.Type) string {
	switch t := t.(type) {
	case *iceberg.StructType:
		return "struct<" + show(t.FieldList) + ">"
	case *iceberg.ListType:
		return fmt.Sprintf("list<%d %s>", t.ElementID, showType(t.Element))
	case *iceberg.MapType:
		return fmt.Sprintf("map<%d %s, %d %s>", t.KeyID, showType(t.KeyType), t.ValueID, showType(t.ValueType))
	}
	return t.String()
}

// anyFields draws the fields of a version of a contract: keys from a small set, each with a
// permanent type, under a name of that version.
func anyFields(r *rapid.T, version, depth int) []columnar.Field {
	var fields []columnar.Field
	for _, key := range rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 1, 5, rapid.ID[int]).Draw(r, "keys") {
		name := fmt.Sprintf("f%d", key)
		if rapid.IntRange(0, 9).Draw(r, "renamed") == 0 {
			name = fmt.Sprintf("f%d_v%d", key, version)
		}
		f := field(fmt.Sprint(key), name, columnar.Type(text))
		switch {
		case key == 2:
			f.Type = long
		case key == 3 && depth > 0:
			f.Type = group(anyFields(r, version, depth-1)...)
		case key == 4 && depth > 0:
			f.Type = list(group(anyFields(r, version, depth-1)...))
		case key == 5 && depth > 0:
			f.Type = columnar.Map{Key: required(field("", "key", text)), Value: field("", "value", group(anyFields(r, version, depth-1)...))}
		case key > 2:
			f.Type = double
			f.Key += "d" // a type of its own
			f.Name += "d"
		}
		fields = append(fields, f)
	}
	return fields
}

// For any sequence of contract versions: a column id always belongs to the same key, the same
// version twice changes nothing, and what a program writes fits the table.
func TestVersionsInAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		step, err := evolution.New(anyFields(r, 0, 2), nil)
		if err != nil {
			r.Fatal(err)
		}
		meaning := map[int]string{}
		for version := range rapid.IntRange(1, 6).Draw(r, "versions") {
			want := anyFields(r, version, 2)
			next, err := evolution.Of(step.Schema, step.LastID, step.Keys, want)
			if err != nil {
				r.Fatal(err)
			}
			again, err := evolution.Of(next.Schema, next.LastID, next.Keys, want)
			if err != nil || len(again.Changes) > 0 || again.LastID != next.LastID {
				r.Fatalf("again: %v, %q", err, again.Changes)
			}
			if next.LastID < step.LastID {
				r.Fatalf("the last id went from %d to %d", step.LastID, next.LastID)
			}
			for id, key := range next.Keys {
				if was, ok := meaning[id]; ok && was != key {
					r.Fatalf("id %d was key %s and is key %s", id, was, key)
				}
				meaning[id] = key
			}
			written, err := columnar.Schema(next.Columns)
			if err != nil {
				r.Fatal(err)
			}
			for _, f := range written.Fields() {
				got, ok := next.Schema.FindFieldByID(f.ID)
				if !ok || got.Name != f.Name || got.Required && !f.Required {
					r.Fatalf("column %v is written as %v", got, f)
				}
			}
			keys, err := evolution.ParseKeys(next.Keys.String())
			if err != nil || keys.String() != next.Keys.String() {
				r.Fatalf("keys %s read back as %s, %v", next.Keys, keys, err)
			}
			step = next
		}
	})
}

func TestBadProperty(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"x", `{"a":"b"}`, `{"1":2}`} {
		if _, err := evolution.ParseKeys(bad); err == nil || !strings.Contains(err.Error(), evolution.Property) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
