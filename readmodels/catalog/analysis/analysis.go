// Package analysis decides what a word of a product is and which words are the same, for every
// search engine. An engine stores and looks up finished terms, so engines cannot differ in what they
// find, and none needs a language plugin.
//
// [Document] is what an engine indexes of a product, and [Clauses] is what a text asks for in it.
// The steps are the same for both:
//
//  1. compatibility normalisation (NFKC), case folding, and removal of accents;
//  2. words, as Unicode's annex 29 separates them;
//  3. the stem of each word (Porter's algorithm, English).
//
// Scripts that do not separate words (Chinese, Japanese, Thai and others) are cut into pairs of
// characters, like Lucene's CJK bigrams.
package analysis

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/blevesearch/bleve/v2/analysis"
	"github.com/blevesearch/bleve/v2/analysis/char/asciifolding"
	"github.com/blevesearch/bleve/v2/analysis/lang/en"
	"github.com/blevesearch/go-porterstemmer"
	"github.com/clipperhouse/uax29/v2/graphemes"
	"github.com/clipperhouse/uax29/v2/words"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// word is a word of a text.
type word struct {
	plain string // as it was typed, folded
	stem  string // what its inflections have in common; empty for a word that means nothing by itself ("the")

	hyphenated bool // it belongs to the word before it: the "fi" of "wi-fi"
	adjacent   bool // nothing but space stands between it and the word before it
	unspaced   bool // it is a piece of a script that does not separate words
	first      bool // of the pieces of such a run
}

const maxTerm = 64 // runes of a term; engines bound a term's length too, each elsewhere

// analyse cuts a text into its words.
func analyse(text string) []word {
	var all []word
	separator := "" // between the last word and this one
	run := []string(nil)
	flush := func() {
		all = append(all, pieces(run)...)
		run = nil
	}
	for tokens := words.FromString(fold(text)); tokens.Next(); {
		token := tokens.Value()
		r, _ := utf8.DecodeRuneInString(token)
		switch {
		case unspaced(r):
			for g := graphemes.FromString(token); g.Next(); {
				run = append(run, g.Value())
			}
			separator = "\x00" // nothing is joined to a run
			continue
		case !unicode.IsLetter(r) && !unicode.IsNumber(r) && !isSymbol(r):
			flush()
			separator += token
			continue
		}
		flush()
		w := word{plain: bounded(token)}
		if len(all) > 0 {
			w.hyphenated = len(separator) == 1 && strings.Contains("-/&+'", separator)
			w.adjacent = strings.TrimSpace(separator) == "" && separator != ""
		}
		w.plain = strings.TrimSuffix(w.plain, "'s")
		if !stopWords()[w.plain] {
			w.stem = stem(w.plain)
		}
		all = append(all, w)
		separator = ""
	}
	flush()
	return all
}

// pieces are the characters of a run, each with the one behind it.
func pieces(run []string) []word {
	var all []word
	for i := range run {
		p := word{plain: bounded(run[i]), unspaced: true, first: i == 0}
		if i < len(run)-1 {
			p.plain = bounded(run[i] + run[i+1])
		} else if i > 0 {
			break // the pair before holds it
		}
		p.stem = p.plain
		all = append(all, p)
	}
	return all
}

// fold makes texts that people take for the same the same.
func fold(text string) string {
	text = cases.Fold().String(norm.NFKC.String(marks.Replace(text)))
	var b strings.Builder
	base := rune(0)
	for _, r := range norm.NFD.String(text) {
		switch {
		case r == '_' || unicode.Is(unicode.Pd, r): // all dashes are one; annex 29 takes an underscore for a letter
			b.WriteByte('-')
		case unicode.Is(unicode.Mn, r) && accented(base):
			continue
		case r == '\u00ad' || r == '\ufe0f' || r == '\ufe0e' || '\U0001f3fb' <= r && r <= '\U0001f3ff':
			continue // a soft hyphen, and how an emoji is to look
		default:
			b.WriteRune(r)
		}
		if !unicode.Is(unicode.Mn, r) {
			base = r
		}
	}
	folded := asciifolding.New().Filter([]byte(norm.NFKC.String(b.String())))
	return string(folded)
}

// marks of a brand are no part of its name. Compatibility normalisation would make letters of them.
var marks = strings.NewReplacer("™", "", "℠", "", "®", "", "©", "")

// accented reports whether marks on a letter are accents, which people leave out. In other scripts they are vowels.
func accented(r rune) bool {
	return unicode.In(r, unicode.Latin, unicode.Greek, unicode.Cyrillic, unicode.Hebrew, unicode.Arabic)
}

func unspaced(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar) || r == 'ー'
}

// isSymbol reports whether a rune that is neither letter nor digit can be looked for: emoji can.
func isSymbol(r rune) bool { return unicode.Is(unicode.So, r) }

func bounded(term string) string {
	n := 0
	for i := range term {
		if n == maxTerm {
			return term[:i]
		}
		n++
	}
	return term
}

var stopWords = sync.OnceValue(func() map[string]bool {
	m := analysis.NewTokenMap()
	if err := m.LoadBytes(en.EnglishStopWords); err != nil {
		panic(err) // the list is part of the program
	}
	folded := make(map[string]bool, len(m))
	for w := range m {
		folded[fold(w)] = true
	}
	return folded
})

// stem is Porter's for English words; others are their own.
func stem(w string) string {
	for _, r := range w {
		if (r < 'a' || r > 'z') && r != '\'' {
			return w
		}
	}
	return string(porterstemmer.StemWithoutLowerCasing([]rune(w)))
}

// terms is what an engine indexes of a text, each field a list of terms.
type terms struct {
	stems  []string // finds every inflection
	plain  []string // finds a word by its beginning, and with a letter wrong
	joined []string // finds "wi-fi" and "wi fi" as "wifi"
}

func termsOf(text string) terms {
	var t terms
	ws := analyse(text)
	for i, w := range ws {
		if w.stem != "" {
			t.stems = append(t.stems, w.stem)
		}
		if !w.unspaced {
			t.plain = append(t.plain, w.plain)
		} else {
			for g := graphemes.FromString(w.plain); g.Next(); { // a single character is looked for as well
				if g.Value() != w.plain {
					t.stems = append(t.stems, g.Value())
				}
			}
		}
		for _, j := range joins(ws, i) {
			t.joined = append(t.joined, stem(j))
		}
	}
	return t
}

// joins are the words that end with word i when it is written together with those before it: the one before it, and all of a
// hyphenated chain ("4-in-1"). Words that mean nothing are joined by a hyphen alone ("in-ear").
func joins(ws []word, i int) []string {
	if i == 0 || ws[i].unspaced || ws[i-1].unspaced {
		return nil
	}
	var all []string
	meaningful := ws[i-1].stem != "" && ws[i].stem != ""
	if ws[i].hyphenated || ws[i].adjacent && meaningful {
		all = append(all, bounded(ws[i-1].plain+ws[i].plain))
	}
	start := i
	for start > 0 && ws[start].hyphenated && i-start < maxChain {
		start--
	}
	if i-start > 1 {
		var b strings.Builder
		for _, w := range ws[start : i+1] {
			b.WriteString(w.plain)
		}
		all = append(all, bounded(b.String()))
	}
	return all
}

const maxChain = 4 // hyphens of a word
