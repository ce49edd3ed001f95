package elasticsearch

import (
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
)

// queryOf translates a query. Filters do not influence the score. It translates the clauses of
// package analysis one by one and adds nothing, so that both engines find the same products.
func queryOf(q catalog.Query) map[string]any {
	type m = map[string]any
	filter := []any{m{"term": m{analysis.FieldListed: true}}}
	if q.Category != "" {
		filter = append(filter, m{"term": m{analysis.FieldCategory: analysis.Category(q.Category)}})
	}
	if q.Text == "" {
		return m{"bool": m{"filter": filter}}
	}
	// Every clause must hold, by at least one of its matches.
	var must []any
	for _, anyOf := range analysis.Clauses(q.Text) {
		matches := make([]any, len(anyOf))
		for i, match := range anyOf {
			matches[i] = matchOf(match)
		}
		must = append(must, m{"bool": m{"should": matches, "minimum_should_match": 1}})
	}
	if len(must) == 0 {
		return m{"match_none": m{}}
	}
	return m{"bool": m{"filter": filter, "must": must}}
}

// matchOf translates one match of a clause.
func matchOf(m analysis.Match) map[string]any {
	how := map[string]any{"value": m.Term, "boost": m.Boost}
	kind := "term"
	switch m.Kind {
	case analysis.Prefix:
		kind = "prefix"
	// As in bleve, a transposition of two letters counts as one mistake.
	case analysis.Fuzzy:
		kind = "fuzzy"
		how["fuzziness"], how["prefix_length"], how["transpositions"], how["max_expansions"] = 1, 1, true, maxExpansions
	}
	return map[string]any{kind: map[string]any{m.Field: how}}
}

const maxExpansions = 1000 // maximum number of terms that one fuzzy match expands to
