package features

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/millrace/millrace/features/exact"
)

// Description is a group in words, for the catalogue. The names of its fields are an interface for
// scripts.
type Description struct {
	Group       string               `json:"group"`
	Version     int                  `json:"version"`
	Entity      string               `json:"entity"`
	Identity    string               `json:"identity,omitempty"` // customers or visitors: vectors follow merges
	Description string               `json:"description"`
	Owner       string               `json:"owner"`
	Features    []FeatureDescription `json:"features"`
	Sources     []SourceDescription  `json:"sources"`
}

// FeatureDescription is a feature in words.
type FeatureDescription struct {
	Feature     string   `json:"feature"`
	Description string   `json:"description"`
	Definition  string   `json:"definition"` // "sum(total) from customer_orders where currency = GBP"
	Type        string   `json:"type"`       // integer, number, text or texts
	Nullable    bool     `json:"nullable"`   // null if no fact is in the window
	Windows     []string `json:"windows"`
	Outputs     []string `json:"outputs"` // names of the columns
}

// SourceDescription is a source in words.
type SourceDescription struct {
	Source  string              `json:"source"`
	Topic   string              `json:"topic"`
	Columns []ColumnDescription `json:"columns"`
}

// ColumnDescription is a column of a source in words.
type ColumnDescription struct {
	Column      string `json:"column"`
	Type        string `json:"type"`
	Description string `json:"description"`
}

// Describe returns the group in words.
func (g *Group) Describe() Description {
	d := Description{
		Group: g.Name, Version: g.Version, Entity: g.Entity, Identity: g.Identity.String(), Description: g.Description,
		Owner: g.Owner,
	}
	for i := range g.Features {
		f := &g.Features[i]
		fd := FeatureDescription{
			Feature: f.Name, Description: f.Description, Definition: g.definition(f), Type: typeNames[g.kind(f)],
			Nullable: f.Nullable(),
		}
		for _, w := range f.Windows {
			fd.Windows = append(fd.Windows, w.String())
		}
		d.Features = append(d.Features, fd)
	}
	for _, o := range g.Outputs() {
		for i := range d.Features {
			if d.Features[i].Feature == o.Feature.Name {
				d.Features[i].Outputs = append(d.Features[i].Outputs, o.Name)
			}
		}
	}
	for _, s := range g.Sources {
		sd := SourceDescription{Source: s.Name, Topic: s.Topic}
		for _, c := range s.Columns {
			kind := "number"
			switch {
			case c.Kind == exact.Text:
				kind = "text"
			case c.Scale == 0:
				kind = "integer"
			}
			sd.Columns = append(sd.Columns, ColumnDescription{c.Name, kind, c.Description})
		}
		d.Sources = append(d.Sources, sd)
	}
	return d
}

// String returns the name of the kind in descriptions. It is empty for NoIdentity.
func (i Identity) String() string {
	switch i {
	case Customers:
		return "customers"
	case Visitors:
		return "visitors"
	case NoIdentity:
	}
	return ""
}

var typeNames = map[exact.ResultKind]string{
	exact.IntResult: "integer", exact.FloatResult: "number", exact.TextResult: "text", exact.TextsResult: "texts",
}

// Nullable reports whether the feature is null if no fact is in its window. The others are 0 or
// empty then.
func (f *Feature) Nullable() bool {
	switch f.Aggregate {
	case exact.Count, exact.Sum, exact.Distinct, exact.Top:
		return f.Over != nil
	}
	return true
}

// definition returns what a feature computes: "sum(total) from customer_orders where currency =
// GBP".
func (g *Group) definition(f *Feature) string {
	var b strings.Builder
	switch {
	case f.Age:
		b.WriteString("seconds since the " + f.Aggregate.String())
	case f.Aggregate == exact.Top:
		b.WriteString("top " + strconv.Itoa(f.K) + " of " + f.Column)
	case f.Aggregate == exact.Quantile:
		b.WriteString("quantile " + strconv.FormatFloat(f.Q, 'g', -1, 64) + " of " + f.Column)
	default:
		b.WriteString(f.Aggregate.String() + "(" + f.Column + ")")
	}
	b.WriteString(" from " + f.Source)
	for i, c := range f.Where {
		b.WriteString(map[bool]string{true: " where ", false: " and "}[i == 0])
		b.WriteString(c.Column + " " + string(c.Op) + " ")
		column, _ := g.Column(f.Source, c.Column)
		if c.Op != In {
			b.WriteString(constant(c.Value, column.Scale))
			continue
		}
		all := make([]string, len(c.Values))
		for j, v := range c.Values {
			all[j] = constant(v, column.Scale)
		}
		b.WriteString("(" + strings.Join(all, ", ") + ")")
	}
	if f.Over != nil {
		b.WriteString(", divided by " + g.definition(f.Over))
	}
	return b.String()
}

// constant returns a value as people write it: a number of scale 2 and value 150 is 1.5.
func constant(v exact.Value, scale int) string {
	if v.Kind != exact.Number || scale == 0 {
		return v.String()
	}
	r := new(big.Rat).SetFrac(v.Int.Big(), exact.Pow10(scale).Big())
	return strings.TrimSuffix(strings.TrimRight(r.FloatString(scale), "0"), ".")
}
