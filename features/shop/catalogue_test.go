package shop

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/features-catalogue.md")

const catalogueFile = "../../docs/features-catalogue.md"

// catalogue returns docs/features-catalogue.md: every group with its features and sources.
func catalogue() []byte {
	var b bytes.Buffer
	b.WriteString(`<!-- Generated from features/shop. Run: go test ./features/shop -run TestCatalogueIsFresh -update -->

# Catalogue of features

A column of a vector is named after its feature and window: ` + "`orders_30d`" + `. [features.md](features.md)
says what windows, types and null mean. ` + "`millrace features describe GROUP`" + ` prints the same, for the
configured groups and currency.

| group | entity | columns |
|---|---|---|
`)
	groups := Groups(Options{})
	for _, g := range groups {
		fmt.Fprintf(&b, "| [%s](#%s) | `%s` | %d |\n", g.Name, g.Name, g.Entity, len(g.Outputs()))
	}
	for _, g := range groups {
		d := g.Describe()
		fmt.Fprintf(&b, "\n## %s\n\n", d.Group)
		writeWrapped(&b, fmt.Sprintf("%s Version %d, owner %s.", d.Description, d.Version, d.Owner))
		if d.Identity != "" {
			b.WriteByte('\n')
			writeWrapped(&b, fmt.Sprintf("Vectors follow merges of %s ([features.md](features.md#persons)).", d.Identity))
		}
		b.WriteString("\n| feature | what | windows | type | definition |\n|---|---|---|---|---|\n")
		for _, f := range d.Features {
			kind := f.Type
			if f.Nullable {
				kind += " or null"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.Feature, f.Description, strings.Join(f.Windows, ", "), kind, f.Definition)
		}
		for _, s := range d.Sources {
			fmt.Fprintf(&b, "\nFacts `%s`, from topic `%s`:\n\n| column | type | what |\n|---|---|---|\n", s.Source, s.Topic)
			for _, c := range s.Columns {
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Column, c.Type, c.Description)
			}
		}
	}
	return b.Bytes()
}

// writeWrapped writes a paragraph with lines of at most 100 columns.
func writeWrapped(b *bytes.Buffer, text string) {
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len(word) > 100:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}

func TestCatalogueIsFresh(t *testing.T) {
	t.Parallel()
	want := catalogue()
	if *update {
		if err := os.WriteFile(catalogueFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(catalogueFile); err != nil || !bytes.Equal(have, want) {
		t.Errorf("docs/features-catalogue.md is stale (%v): run `go test ./features/shop -run TestCatalogueIsFresh -update` "+
			"and commit it", err)
	}
}
