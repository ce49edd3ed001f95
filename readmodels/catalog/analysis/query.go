package analysis

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// The fields of an indexed product. A text becomes three fields of finished terms, separated by
// spaces. TextFields returns their names.
const (
	FieldListed      = "listed"
	FieldCategory    = "category"
	FieldTitle       = "title"
	FieldDescription = "description"
	plainSuffix      = "_plain"
	joinedSuffix     = "_joined"
)

// TextFields returns the names of the fields that contain terms.
func TextFields() []string {
	var all []string
	for _, text := range []string{FieldTitle, FieldDescription} {
		all = append(all, text, text+plainSuffix, text+joinedSuffix)
	}
	return all
}

// Document returns the fields that an engine indexes of a product, by name.
func Document(p *catalogv1.Product) map[string]any {
	categories := make([]string, len(p.Categories))
	for i, c := range p.Categories {
		categories[i] = Category(c)
	}
	fields := map[string]any{FieldListed: !p.Delisted, FieldCategory: categories}
	for name, text := range map[string]string{FieldTitle: p.Title, FieldDescription: p.Description} {
		t := termsOf(text)
		fields[name] = strings.Join(t.stems, " ")
		fields[name+plainSuffix] = strings.Join(t.plain, " ")
		fields[name+joinedSuffix] = strings.Join(t.joined, " ")
	}
	return fields
}

// Category returns a category as it is indexed.
func Category(c string) string { return norm.NFC.String(c) }

// Match finds products by one term in one field.
type Match struct {
	Kind  Kind
	Field string
	Term  string
	Boost float64 // weight of the match in the score
}

// Kind is how the term of a Match is compared with the terms of a product.
type Kind int

// The kinds of matches.
const (
	Exact  Kind = iota
	Prefix      // terms that begin with it
	// Terms that differ in one letter, but not in the first, which is rarely mistyped.
	Fuzzy
)

// Clauses returns the conditions of a search text. A product matches if at least one Match of
// every clause holds. A text without words has no clauses and matches nothing.
//
// A stop word ("the") is not required unless it is the last word, which may be unfinished. Two
// adjacent words also match one compound word in the product, and the reverse.
func Clauses(text string) [][]Match {
	var all [][]Match
	ws := analyse(text)
	for i, w := range ws {
		var anyOf []Match
		if w.stem != "" {
			anyOf = append(anyOf, both(Exact, "", w.stem, 4, 1)...)
			if !w.unspaced {
				anyOf = append(anyOf, both(Exact, joinedSuffix, w.stem, 3, 0.75)...)
			}
		}
		// Written together with the word before it, or with the one after it.
		for _, k := range []int{i, i + 1} {
			if k >= len(ws) || len(anyOf) == 0 && !ws[k].hyphenated {
				continue
			}
			for _, j := range joins(ws, k) {
				anyOf = append(anyOf, both(Exact, "", stem(j), 3, 0.75)...)
				anyOf = append(anyOf, both(Exact, joinedSuffix, stem(j), 3, 0.75)...)
				if k == len(ws)-1 {
					anyOf = append(anyOf, both(Prefix, plainSuffix, j, 0.3, 0.08)...)
				}
			}
		}
		if i == len(ws)-1 && !w.unspaced {
			anyOf = append(anyOf, unfinished(w.plain)...)
		}
		if len(anyOf) > 0 {
			all = append(all, anyOf)
		}
	}
	return all
}

// unfinished matches a word by its beginning. If the word is long enough for a mistake to be
// distinguished from another word, it also matches with one wrong letter.
func unfinished(word string) []Match {
	all := both(Prefix, plainSuffix, word, 0.4, 0.1)
	if utf8.RuneCountInString(word) >= 4 {
		all = append(all, both(Prefix, joinedSuffix, word, 0.3, 0.08)...)
		all = append(all, both(Fuzzy, plainSuffix, word, 0.1, 0.02)...)
	}
	return all
}

// both returns a match in the title and one in the description.
func both(kind Kind, suffix, term string, inTitle, inDescription float64) []Match {
	return []Match{{kind, FieldTitle + suffix, term, inTitle}, {kind, FieldDescription + suffix, term, inDescription}}
}
