package catalog

import (
	"fmt"
	"unicode/utf8"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/custom"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/keyword"
	"github.com/blevesearch/bleve/v2/analysis/char/asciifolding"
	"github.com/blevesearch/bleve/v2/analysis/lang/en"
	"github.com/blevesearch/bleve/v2/analysis/token/lowercase"
	"github.com/blevesearch/bleve/v2/analysis/token/porter"
	"github.com/blevesearch/bleve/v2/analysis/tokenizer/unicode"
	"github.com/blevesearch/bleve/v2/mapping"
	"github.com/blevesearch/bleve/v2/search/query"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// What is indexed of a product. Texts are indexed twice: by the stems of their words, which finds every inflection, and as
// they are, which finds a word by its beginning.
const (
	fieldProduct     = "product" // the whole document, stored and not indexed
	fieldListed      = "listed"
	fieldCategory    = "category"
	fieldTitle       = "title"
	fieldDescription = "description"
	plainSuffix      = ".plain"

	englishAnalyzer = "millrace_english"
	plainAnalyzer   = "millrace_plain"
)

func indexMapping() (mapping.IndexMapping, error) {
	m := bleve.NewIndexMapping()
	for name, filters := range map[string][]string{
		englishAnalyzer: {en.PossessiveName, lowercase.Name, en.StopName, porter.Name},
		plainAnalyzer:   {lowercase.Name},
	} {
		err := m.AddCustomAnalyzer(name, map[string]any{
			"type": custom.Name, "char_filters": []string{asciifolding.Name}, "tokenizer": unicode.Name, "token_filters": filters,
		})
		if err != nil {
			return nil, err
		}
	}
	text := func(name, analyzer string) *mapping.FieldMapping {
		return &mapping.FieldMapping{Name: name, Type: "text", Analyzer: analyzer, Index: true}
	}
	product := bleve.NewDocumentStaticMapping()
	product.AddSubDocumentMapping("_all", bleve.NewDocumentDisabledMapping()) // else every text is indexed once more
	product.AddFieldMappingsAt(fieldProduct, &mapping.FieldMapping{Name: fieldProduct, Type: "text", Store: true})
	product.AddFieldMappingsAt(fieldListed, &mapping.FieldMapping{Name: fieldListed, Type: "boolean", Index: true})
	product.AddFieldMappingsAt(fieldCategory, text(fieldCategory, keyword.Name))
	for _, field := range []string{fieldTitle, fieldDescription} {
		product.AddFieldMappingsAt(field, text(field, englishAnalyzer), text(field+plainSuffix, plainAnalyzer))
	}
	m.DefaultMapping = product
	return m, nil
}

func indexedFields(p *catalogv1.Product) (map[string]any, error) {
	stored, err := proto.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("marshal: %w", err)
	}
	return map[string]any{
		fieldProduct: string(stored), fieldListed: !p.Delisted, fieldCategory: p.Categories, fieldTitle: p.Title, fieldDescription: p.Description,
	}, nil
}

// words makes queries of what people type. Both indexes cut it into words alike.
type words struct{ plain, english analysis.Analyzer }

func wordsOf(m mapping.IndexMapping) words {
	return words{m.AnalyzerNamed(plainAnalyzer), m.AnalyzerNamed(englishAnalyzer)}
}

func newWords() (words, error) {
	m, err := indexMapping()
	if err != nil {
		return words{}, fmt.Errorf("describe words: %w", err)
	}
	return wordsOf(m), nil
}

func (w words) query(q Query) query.Query {
	listed := bleve.NewBoolFieldQuery(true)
	listed.SetField(fieldListed)
	filter := bleve.NewConjunctionQuery(listed)
	if q.Category != "" {
		category := bleve.NewTermQuery(q.Category)
		category.SetField(fieldCategory)
		filter.AddQuery(category)
	}
	all := bleve.NewBooleanQuery()
	all.AddFilter(filter)
	if q.Text != "" {
		all.AddMust(w.text(q.Text))
	}
	return all
}

// text wants every word. A word that means nothing ("the") is not wanted, unless it is the last: it may become another.
func (w words) text(text string) query.Query {
	var wanted []query.Query
	tokens := w.plain.Analyze([]byte(text))
	for i, token := range tokens {
		var anyOf []query.Query
		for _, stem := range w.english.Analyze(token.Term) {
			anyOf = append(anyOf,
				in(fieldTitle, 4, bleve.NewTermQuery(string(stem.Term))),
				in(fieldDescription, 1, bleve.NewTermQuery(string(stem.Term))))
		}
		if i == len(tokens)-1 {
			anyOf = append(anyOf, unfinished(string(token.Term))...)
		}
		if len(anyOf) > 0 {
			wanted = append(wanted, bleve.NewDisjunctionQuery(anyOf...))
		}
	}
	if len(wanted) == 0 {
		return bleve.NewMatchNoneQuery()
	}
	return bleve.NewConjunctionQuery(wanted...)
}

// unfinished finds a word by its beginning and, where it is long enough for a mistake to be told from another word, with
// one letter wrong.
func unfinished(word string) []query.Query {
	queries := []query.Query{
		in(fieldTitle+plainSuffix, 0.4, bleve.NewPrefixQuery(word)),
		in(fieldDescription+plainSuffix, 0.1, bleve.NewPrefixQuery(word)),
	}
	if utf8.RuneCountInString(word) >= 4 {
		queries = append(queries, in(fieldTitle+plainSuffix, 0.1, misspelt(word)), in(fieldDescription+plainSuffix, 0.02, misspelt(word)))
	}
	return queries
}

func misspelt(word string) *query.FuzzyQuery {
	q := bleve.NewFuzzyQuery(word)
	q.SetFuzziness(1)
	q.SetPrefix(1) // people seldom miss the first letter
	return q
}

// in looks in one field, which counts for so much.
func in[Q interface {
	query.FieldableQuery
	query.BoostableQuery
}](field string, boost float64, q Q) query.Query {
	q.SetField(field)
	q.SetBoost(boost)
	return q
}

// elasticQuery is query for Elasticsearch, which itself knows the stems of a word.
func (w words) elasticQuery(q Query) map[string]any {
	type m = map[string]any
	filter := []any{m{"term": m{fieldListed: true}}}
	if q.Category != "" {
		filter = append(filter, m{"term": m{fieldCategory: q.Category}})
	}
	if q.Text == "" {
		return m{"bool": m{"filter": filter}}
	}
	must := []any{m{"match_none": m{}}}
	tokens := w.plain.Analyze([]byte(q.Text))
	if len(tokens) > 0 {
		must = nil
	}
	for i, token := range tokens {
		word, last := string(token.Term), i == len(tokens)-1
		nothing := "all" // which a word that means nothing finds
		if last {
			nothing = "none"
		}
		stem := m{"multi_match": m{
			"query": word, "fields": []string{fieldTitle + "^4", fieldDescription}, "operator": "and", "zero_terms_query": nothing,
		}}
		if !last {
			must = append(must, stem)
			continue
		}
		anyOf := []any{stem}
		for _, field := range []string{fieldTitle, fieldDescription} { // in this order, for sums of scores depend on it
			anyOf = append(anyOf, m{"match_bool_prefix": m{field + plainSuffix: m{
				"query": word, "operator": "and", "boost": map[string]float64{fieldTitle: 0.4, fieldDescription: 0.1}[field],
			}}})
			if utf8.RuneCountInString(word) >= 4 {
				anyOf = append(anyOf, m{"match": m{field + plainSuffix: m{
					"query": word, "operator": "and", "fuzziness": 1, "prefix_length": 1,
					"boost": map[string]float64{fieldTitle: 0.1, fieldDescription: 0.02}[field],
				}}})
			}
		}
		must = append(must, m{"bool": m{"should": anyOf, "minimum_should_match": 1}})
	}
	return m{"bool": m{"filter": filter, "must": must}}
}
