package catalog

import (
	"strings"
	"unicode/utf8"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/custom"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/keyword"
	"github.com/blevesearch/bleve/v2/analysis/tokenizer/whitespace"
	"github.com/blevesearch/bleve/v2/mapping"
	"github.com/blevesearch/bleve/v2/search/query"
	"golang.org/x/text/unicode/norm"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// What is indexed of a product. A text becomes three fields of finished terms, separated by spaces: see terms.
const (
	fieldProduct     = "product" // the whole document, stored and not indexed, in Elasticsearch alone
	fieldListed      = "listed"
	fieldCategory    = "category"
	fieldTitle       = "title"
	fieldDescription = "description"
	plainSuffix      = "_plain"
	joinedSuffix     = "_joined"

	termsAnalyzer = "millrace_terms"
)

// textFields are the fields of all texts.
func textFields() []string {
	var all []string
	for _, text := range []string{fieldTitle, fieldDescription} {
		all = append(all, text, text+plainSuffix, text+joinedSuffix)
	}
	return all
}

func indexMapping() (mapping.IndexMapping, error) {
	m := bleve.NewIndexMapping()
	err := m.AddCustomAnalyzer(termsAnalyzer, map[string]any{"type": custom.Name, "tokenizer": whitespace.Name})
	if err != nil {
		return nil, err
	}
	text := func(name, analyzer string) *mapping.FieldMapping {
		return &mapping.FieldMapping{Name: name, Type: "text", Analyzer: analyzer, Index: true}
	}
	product := bleve.NewDocumentStaticMapping()
	product.AddSubDocumentMapping("_all", bleve.NewDocumentDisabledMapping()) // else every text is indexed once more
	product.AddFieldMappingsAt(fieldListed, &mapping.FieldMapping{Name: fieldListed, Type: "boolean", Index: true})
	product.AddFieldMappingsAt(fieldCategory, text(fieldCategory, keyword.Name))
	for _, field := range textFields() {
		product.AddFieldMappingsAt(field, text(field, termsAnalyzer))
	}
	m.DefaultMapping = product
	return m, nil
}

// indexedFields is what both engines are given of a product, but for the form of the whole of it.
func indexedFields(p *catalogv1.Product) map[string]any {
	fields := map[string]any{fieldListed: !p.Delisted, fieldCategory: normalised(p.Categories)}
	for name, text := range map[string]string{fieldTitle: p.Title, fieldDescription: p.Description} {
		t := termsOf(text)
		fields[name] = strings.Join(t.stems, " ")
		fields[name+plainSuffix] = strings.Join(t.plain, " ")
		fields[name+joinedSuffix] = strings.Join(t.joined, " ")
	}
	return fields
}

func normalised(categories []string) []string {
	all := make([]string, len(categories))
	for i, c := range categories {
		all[i] = norm.NFC.String(c)
	}
	return all
}

// A match looks for one term, in one field.
type match struct {
	how   matchKind
	field string
	term  string
	boost float64 // how much it counts
}

type matchKind int

const (
	exactly     matchKind = iota
	byBeginning           // terms that begin with it
	misspelt              // terms of which it differs in one letter, but not in the first: people seldom miss that
)

// clauses are what a text asks for: every clause, each by any of its matches. No clause means that it has no word.
//
// A word that means nothing ("the") is not asked for, unless it is the last: it may become another. The last word may
// be unfinished. Two words that stand side by side may be one in the product, and the other way round.
func clauses(text string) [][]match {
	var all [][]match
	ws := analyse(text)
	for i, w := range ws {
		var anyOf []match
		if w.stem != "" {
			anyOf = append(anyOf, both(exactly, "", w.stem, 4, 1)...)
			if !w.unspaced {
				anyOf = append(anyOf, both(exactly, joinedSuffix, w.stem, 3, 0.75)...)
			}
		}
		for _, k := range []int{i, i + 1} { // written together with the word before it, or with the one behind it
			if k >= len(ws) || len(anyOf) == 0 && !ws[k].hyphenated {
				continue
			}
			for _, j := range joins(ws, k) {
				anyOf = append(anyOf, both(exactly, "", stem(j), 3, 0.75)...)
				anyOf = append(anyOf, both(exactly, joinedSuffix, stem(j), 3, 0.75)...)
				if k == len(ws)-1 {
					anyOf = append(anyOf, both(byBeginning, plainSuffix, j, 0.3, 0.08)...)
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

// unfinished finds a word by its beginning and, where it is long enough for a mistake to be told from another word,
// with one letter wrong.
func unfinished(word string) []match {
	all := both(byBeginning, plainSuffix, word, 0.4, 0.1)
	if utf8.RuneCountInString(word) >= 4 {
		all = append(all, both(byBeginning, joinedSuffix, word, 0.3, 0.08)...)
		all = append(all, both(misspelt, plainSuffix, word, 0.1, 0.02)...)
	}
	return all
}

// both looks in title and description.
func both(how matchKind, suffix, term string, inTitle, inDescription float64) []match {
	return []match{{how, fieldTitle + suffix, term, inTitle}, {how, fieldDescription + suffix, term, inDescription}}
}

func bleveQuery(q Query) query.Query {
	listed := bleve.NewBoolFieldQuery(true)
	listed.SetField(fieldListed)
	filter := bleve.NewConjunctionQuery(listed)
	if q.Category != "" {
		category := bleve.NewTermQuery(norm.NFC.String(q.Category))
		category.SetField(fieldCategory)
		filter.AddQuery(category)
	}
	all := bleve.NewBooleanQuery()
	all.AddFilter(filter)
	if q.Text == "" {
		return all
	}
	var wanted []query.Query
	for _, anyOf := range clauses(q.Text) {
		matches := make([]query.Query, len(anyOf))
		for i, m := range anyOf {
			matches[i] = m.bleve()
		}
		wanted = append(wanted, bleve.NewDisjunctionQuery(matches...))
	}
	if len(wanted) == 0 {
		return bleve.NewMatchNoneQuery()
	}
	all.AddMust(bleve.NewConjunctionQuery(wanted...))
	return all
}

func (m match) bleve() query.Query {
	var q interface {
		query.FieldableQuery
		query.BoostableQuery
	}
	switch m.how {
	case byBeginning:
		q = bleve.NewPrefixQuery(m.term)
	case misspelt:
		fuzzy := bleve.NewFuzzyQuery(m.term)
		fuzzy.SetFuzziness(1)
		fuzzy.SetPrefix(1)
		q = fuzzy
	default:
		q = bleve.NewTermQuery(m.term)
	}
	q.SetField(m.field)
	q.SetBoost(m.boost)
	return q
}

func elasticQuery(q Query) map[string]any {
	type m = map[string]any
	filter := []any{m{"term": m{fieldListed: true}}}
	if q.Category != "" {
		filter = append(filter, m{"term": m{fieldCategory: norm.NFC.String(q.Category)}})
	}
	if q.Text == "" {
		return m{"bool": m{"filter": filter}}
	}
	var must []any
	for _, anyOf := range clauses(q.Text) {
		matches := make([]any, len(anyOf))
		for i, match := range anyOf {
			matches[i] = match.elastic()
		}
		must = append(must, m{"bool": m{"should": matches, "minimum_should_match": 1}})
	}
	if len(must) == 0 {
		return m{"match_none": m{}}
	}
	return m{"bool": m{"filter": filter, "must": must}}
}

func (m match) elastic() map[string]any {
	how := map[string]any{"value": m.term, "boost": m.boost}
	kind := "term"
	switch m.how {
	case byBeginning:
		kind = "prefix"
	case misspelt: // as in bleve, two letters that changed places are one mistake
		kind = "fuzzy"
		how["fuzziness"], how["prefix_length"], how["transpositions"], how["max_expansions"] = 1, 1, true, maxExpansions
	}
	return map[string]any{kind: map[string]any{m.field: how}}
}

const maxExpansions = 1000 // terms that are one letter away
