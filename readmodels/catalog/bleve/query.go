package bleve

import (
	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/custom"
	"github.com/blevesearch/bleve/v2/analysis/analyzer/keyword"
	"github.com/blevesearch/bleve/v2/analysis/tokenizer/whitespace"
	"github.com/blevesearch/bleve/v2/mapping"
	"github.com/blevesearch/bleve/v2/search/query"

	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
)

// termsAnalyzer is the name of the analyzer that splits finished terms at spaces.
const termsAnalyzer = "millrace_terms"

// indexMapping describes the fields to bleve. Texts are finished terms, so the analyzer only splits
// at spaces.
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
	// Otherwise bleve indexes every text a second time.
	product.AddSubDocumentMapping("_all", bleve.NewDocumentDisabledMapping())
	product.AddFieldMappingsAt(analysis.FieldListed, &mapping.FieldMapping{Name: analysis.FieldListed, Type: "boolean",
		Index: true})
	product.AddFieldMappingsAt(analysis.FieldCategory, text(analysis.FieldCategory, keyword.Name))
	for _, field := range analysis.TextFields() {
		product.AddFieldMappingsAt(field, text(field, termsAnalyzer))
	}
	m.DefaultMapping = product
	return m, nil
}

// queryOf translates a query. Filters do not influence the score.
func queryOf(q catalog.Query) query.Query {
	listed := bleve.NewBoolFieldQuery(true)
	listed.SetField(analysis.FieldListed)
	filter := bleve.NewConjunctionQuery(listed)
	if q.Category != "" {
		category := bleve.NewTermQuery(analysis.Category(q.Category))
		category.SetField(analysis.FieldCategory)
		filter.AddQuery(category)
	}
	// A filter does not score, unlike a conjunct.
	all := bleve.NewBooleanQuery()
	all.AddFilter(filter)
	if q.Text == "" {
		return all
	}
	// Every clause must hold, by at least one of its matches.
	var wanted []query.Query
	for _, anyOf := range analysis.Clauses(q.Text) {
		matches := make([]query.Query, len(anyOf))
		for i, m := range anyOf {
			matches[i] = matchOf(m)
		}
		wanted = append(wanted, bleve.NewDisjunctionQuery(matches...))
	}
	if len(wanted) == 0 {
		return bleve.NewMatchNoneQuery()
	}
	all.AddMust(bleve.NewConjunctionQuery(wanted...))
	return all
}

// matchOf translates one match of a clause.
func matchOf(m analysis.Match) query.Query {
	// All three kinds have a field and a boost.
	var q interface {
		query.FieldableQuery
		query.BoostableQuery
	}
	switch m.Kind {
	case analysis.Prefix:
		q = bleve.NewPrefixQuery(m.Term)
	case analysis.Fuzzy:
		fuzzy := bleve.NewFuzzyQuery(m.Term)
		fuzzy.SetFuzziness(1)
		// The first letter must be right; see analysis.Fuzzy.
		fuzzy.SetPrefix(1)
		q = fuzzy
	default:
		q = bleve.NewTermQuery(m.Term)
	}
	q.SetField(m.Field)
	q.SetBoost(m.Boost)
	return q
}
