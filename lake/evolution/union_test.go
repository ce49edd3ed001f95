package evolution_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

func TestUnion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		have, want []columnar.Field
		all        string // what becomes of it, or why it is refused
	}{
		{"more on both sides", []columnar.Field{field("", "a", text)}, []columnar.Field{field("", "b", long)}, "struct<a string, b long>"},
		{"the wider type, wherever it is", []columnar.Field{field("", "a", whole), field("", "b", double)}, []columnar.Field{field("", "b", single), field("", "a", long)}, "struct<a long, b double>"},
		{"inside of others", []columnar.Field{field("", "a", list(group(field("", "b", whole))))}, []columnar.Field{field("", "a", list(group(field("", "c", text), field("", "b", long))))}, "struct<a list<struct<b long, c string>>>"},
		{"by key, and the name stays", []columnar.Field{field("1", "a", text)}, []columnar.Field{field("1", "b", text)}, "struct<a string>"},
		{"another type", []columnar.Field{field("", "a", group(field("", "b", text)))}, []columnar.Field{field("", "a", group(field("", "b", long)))}, "column a.b: the table has string and these rows have long"},
		{"another shape", []columnar.Field{field("", "a", text)}, []columnar.Field{field("", "a", list(text))}, "column a: the table has string and these rows have list<string>"},
		{"a name that differs in capitals", []columnar.Field{field("", "a", text)}, []columnar.Field{field("", "A", text)}, "column A: the table has another column whose name is equal"},
		{"a name with another key", []columnar.Field{field("1", "a", text)}, []columnar.Field{field("", "a", text)}, "column a: the table has another column whose name is equal"},
		{"an alias", []columnar.Field{field("", "a", text), field("", "c", long)}, []columnar.Field{also(field("", "b", text), "a")}, "struct<b string, c long>"},
		{"an alias inside of others", []columnar.Field{field("", "g", group(field("", "a", whole)))}, []columnar.Field{field("", "g", group(also(field("", "b", long), "a")))}, "struct<g struct<b long>>"},
		{"the name before an alias", []columnar.Field{field("was:a", "b", text)}, []columnar.Field{field("", "a", text)}, "struct<b string>"},
		{"an alias of a name before", []columnar.Field{field("was:a", "b", text)}, []columnar.Field{also(field("", "c", text), "a")}, "struct<c string>"},
		{"an alias beside the name itself", []columnar.Field{field("", "a", text)}, []columnar.Field{also(field("", "b", text), "a"), field("", "a", text)}, "struct<a string, b string>"},
		{"an alias of another type is another field", []columnar.Field{field("", "a", text)}, []columnar.Field{also(field("", "b", long), "a")}, "struct<a string, b long>"},
		{"an alias that two fields have", []columnar.Field{field("", "a", text)}, []columnar.Field{also(field("", "b", text), "a"), also(field("", "c", text), "a")}, "struct<b string, c string>"},
		{"an alias that differs in capitals", []columnar.Field{field("", "A", text)}, []columnar.Field{also(field("", "a", text), "A")}, "struct<a string>"},
		{"an alias whose new name is taken", []columnar.Field{field("", "a", text), field("", "B", text)}, []columnar.Field{also(field("", "b", text), "a")}, "column b: the table has another column whose name is equal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, err := evolution.Union(c.have, c.want)
			got := columnar.Struct{Fields: all}.String()
			if refused := (*evolution.RefusedError)(nil); errors.As(err, &refused) {
				got = err.Error()
			}
			if !strings.HasPrefix(got, c.all) {
				t.Errorf("%s, want %s", got, c.all)
			}
		})
	}
	// What one side may lack is nullable.
	all, err := evolution.Union([]columnar.Field{required(field("", "a", text)), required(field("", "b", text))}, []columnar.Field{required(field("", "b", text)), required(field("", "c", text))})
	if err != nil || all[0].Required || !all[1].Required || all[2].Required {
		t.Errorf("%+v, %v", all, err)
	}
}

func also(f columnar.Field, aliases ...string) columnar.Field {
	f.Aliases = aliases
	return f
}
