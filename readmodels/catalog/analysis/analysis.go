// Package analysis decides what a word of a product is and which words are the same, for every
// search engine. An engine stores and looks up finished terms, so engines cannot differ in what
// they find, and none needs a language plugin.
//
// [Document] is what an engine indexes of a product, and [Clauses] is what a search text requires
// of it. The steps are the same for both:
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

// word is one word of a text.
type word struct {
	plain string // as typed, folded
	// What its inflections have in common. It is empty for a stop word ("the").
	stem string

	hyphenated bool // to the word before it, like the "fi" of "wi-fi"
	adjacent   bool // separated from the word before it by space only
	unspaced   bool // part of a script that does not separate words
	first      bool // the first part of such a run
}

// In runes. Engines limit the length of terms too, each differently.
const maxTerm = 64

// analyse splits a text into its words.
func analyse(text string) []word {
	var all []word
	separator := ""      // between the last word and this one
	run := []string(nil) // the characters of an unspaced script so far
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
			// No word is joined to a run.
			separator = "\x00"
			continue
		case !unicode.IsLetter(r) && !unicode.IsNumber(r) && !isSymbol(r):
			flush()
			separator += token
			continue
		}
		flush()
		w := word{plain: bounded(token)}
		if len(all) > 0 {
			// A single joining character, without spaces around it.
			w.hyphenated = len(separator) == 1 && strings.Contains("-/&+'", separator)
			w.adjacent = strings.TrimSpace(separator) == "" && separator != ""
		}
		// The English possessive is not part of a word.
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

// pieces returns the characters of a run, each together with the next one.
func pieces(run []string) []word {
	var all []word
	for i := range run {
		p := word{plain: bounded(run[i]), unspaced: true, first: i == 0}
		if i < len(run)-1 {
			p.plain = bounded(run[i] + run[i+1])
		} else if i > 0 {
			break // the previous pair contains it
		}
		p.stem = p.plain
		all = append(all, p)
	}
	return all
}

// fold maps texts that people consider the same to one form.
func fold(text string) string {
	// NFKC first: case folding does not map compatibility forms such as full-width letters.
	text = cases.Fold().String(norm.NFKC.String(marks.Replace(text)))
	var b strings.Builder
	base := rune(0)
	for _, r := range norm.NFD.String(text) {
		switch {
		// All dashes are one. Annex 29 counts an underscore as a letter, so it becomes a dash as
		// well.
		case r == '_' || unicode.Is(unicode.Pd, r):
			b.WriteByte('-')
		case unicode.Is(unicode.Mn, r) && accented(base):
			continue
		case r == '\u00ad' || r == '\ufe0f' || r == '\ufe0e' || '\U0001f3fb' <= r && r <= '\U0001f3ff':
			// A soft hyphen, and the modifiers of how an emoji is displayed.
			continue
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

// marks removes trademark signs, which are not part of a name. Compatibility normalisation would
// turn them into letters.
var marks = strings.NewReplacer("™", "", "℠", "", "®", "", "©", "")

// accented reports whether marks on a letter are accents, which people often omit. In other
// scripts, marks are vowels.
func accented(r rune) bool {
	return unicode.In(r, unicode.Latin, unicode.Greek, unicode.Cyrillic, unicode.Hebrew, unicode.Arabic)
}

// unspaced reports whether a rune belongs to a script that does not separate words.
func unspaced(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer,
		unicode.Myanmar) || r == 'ー'
}

// isSymbol reports whether a rune that is neither a letter nor a digit can be searched for. Emoji
// can.
func isSymbol(r rune) bool { return unicode.Is(unicode.So, r) }

// bounded cuts a term to maxTerm runes.
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

// stopWords are English words without a meaning of their own.
var stopWords = sync.OnceValue(func() map[string]bool {
	m := analysis.NewTokenMap()
	if err := m.LoadBytes(en.EnglishStopWords); err != nil {
		panic(err) // unreachable: the list is compiled in
	}
	folded := make(map[string]bool, len(m))
	for w := range m {
		folded[fold(w)] = true
	}
	return folded
})

// stem returns the stem of an English word by Porter's algorithm. Other words are returned
// unchanged.
func stem(w string) string {
	// Porter's rules are for English, and would cut other words wrongly.
	for _, r := range w {
		if (r < 'a' || r > 'z') && r != '\'' {
			return w
		}
	}
	return string(porterstemmer.StemWithoutLowerCasing([]rune(w)))
}

// terms is what an engine indexes of a text: a field for each list of terms.
type terms struct {
	stems  []string // match every inflection of a word
	plain  []string // match a word by its beginning, and with one wrong letter
	joined []string // match "wi-fi" and "wi fi" as "wifi"
}

// termsOf returns the terms of a text.
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
			// Index single characters as well, so that they can be searched for.
			for g := graphemes.FromString(w.plain); g.Next(); {
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

// joins returns the words that end with word i if it is written together with those before it: with
// the previous word, and with a whole hyphenated chain ("4-in-1"). Stop words are joined only by a
// hyphen ("in-ear").
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

const maxChain = 4 // hyphens in one chain; it bounds the terms that one text can cause
