package analysis

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/millrace/millrace/readmodels/catalog/indextest"
)

func FuzzAnalyse(f *testing.F) {
	for _, c := range indextest.Judged {
		f.Add(c.Text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, w := range analyse(text) {
			for _, term := range []string{w.plain, w.stem} {
				if utf8.RuneCountInString(term) > maxTerm || strings.ContainsAny(term, " \t\n\r") {
					t.Errorf("%+q has the term %+q", text, term)
				}
			}
		}
		Clauses(text)
		termsOf(text)
	})
}
