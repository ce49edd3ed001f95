package declare

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

// ErrGrow is wrapped by errors of Grower.Append if the record needs columns that the Grower was not
// created with.
var ErrGrow = errors.New("the record needs columns that its table lacks")

// Grower is the Rows of a table whose columns follow from its records. If a record needs more
// columns, the landing takes three steps. The records before it land. A separate commit adds the
// columns. A new Grower continues with the record.
//
// A lander that fails in between leaves columns that nothing uses yet, which is harmless. Other
// landers keep writing files with the columns that they know, and learn of the new ones when they
// need any.
type Grower interface {
	Rows
	// Grow returns the columns that the table needs to hold the records, given those that it has.
	// Origin columns are not included. A record that cannot fit in any columns asks for none:
	// Append then returns the reason, and the record becomes a dead letter.
	Grow(ctx context.Context, have []columnar.Field, records iter.Seq[Record]) ([]columnar.Field, error)
}

// grown returns the columns of a growing table: existing ones, then declared ones, then those that
// its records need.
func (t Table) grown(have table.Metadata, keys evolution.Keys) ([]columnar.Field, error) {
	there, err := evolution.Columns(have.CurrentSchema(), keys)
	if err != nil {
		return nil, err
	}
	origin := t.OriginColumns()
	there = slices.DeleteFunc(there, func(f columnar.Field) bool {
		return slices.ContainsFunc(origin, func(o columnar.Field) bool { return o.Name == f.Name })
	})
	there = optional(there)
	// If declared columns conflict with existing ones, keep the existing ones.
	want, err := evolution.Union(there, t.Columns)
	if refused := (*evolution.RefusedError)(nil); errors.As(err, &refused) {
		want, err = there, nil // records that need the declared columns become dead letters
	}
	if err == nil && t.grow != nil {
		want, err = t.grow(want)
	}
	return slices.Concat(columnar.Storable(want), origin), err
}

// optional returns the columns with all fields of structs nullable, because records may omit any.
func optional(fields []columnar.Field) []columnar.Field {
	out := slices.Clone(fields)
	for i, f := range out {
		switch t := f.Type.(type) {
		case columnar.Struct:
			inner := optional(t.Fields)
			for j := range inner {
				inner[j].Required = false
			}
			out[i].Type = columnar.Struct{Fields: inner}
		case columnar.List:
			t.Element = optional([]columnar.Field{t.Element})[0]
			out[i].Type = t
		case columnar.Map: // the key of a map cannot change
			t.Value = optional([]columnar.Field{t.Value})[0]
			out[i].Type = t
		}
	}
	return out
}

// Growing returns the table with a function that extends its columns in the next Step.
func (t Table) Growing(grow func(have []columnar.Field) ([]columnar.Field, error)) Table {
	t.grow = grow
	return t
}

// CheckColumns returns an error if a growing table cannot have the declared columns beside those
// that it already has.
func (t Table) CheckColumns(have []columnar.Field) error {
	_, err := evolution.Union(optional(have), t.Columns)
	return err
}
