package catalog

import (
	"testing"
	"unicode/utf8"

	"strings"
)

func FuzzAnalyse(f *testing.F) {
	for _, c := range judged {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, w := range analyse(text) {
			for _, term := range []string{w.plain, w.stem} {
				if utf8.RuneCountInString(term) > maxTerm || strings.ContainsAny(term, " \t\n\r") {
					t.Errorf("%+q has the term %+q", text, term)
				}
			}
		}
		clauses(text)
		termsOf(text)
	})
}
