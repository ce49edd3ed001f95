package indextest

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/readmodels/catalog"
)

// JudgedProducts returns products with texts that search engines often handle wrongly: other
// scripts, accents in both Unicode forms, compounds, symbols and invisible characters. Their SKUs
// say what each of them is for, and Judged refers to them.
func JudgedProducts() []*catalogv1.Product {
	return []*catalogv1.Product{
		// The same letters composed and decomposed. Users type either.
		Product("nfc", norm.NFC.String("Café crème mug"), "", norm.NFD.String("Küche")),
		Product("nfd", norm.NFD.String("Café crème bowl"), ""),
		// A stop word, in a title that also has another word.
		Product("about", "A book about mugs", "All about the mug"),
		// Compounds: one word, with a hyphen, and as two words. Each spelling must find every
		// other.
		Product("wifi", "WiFi router", ""),
		Product("wi-fi", "Wi-Fi extender", ""),
		Product("wi fi", "Wi Fi antenna", ""),
		Product("tshirt", "Tshirt, plain", ""),
		Product("t-shirt", "T-Shirts with stripes", ""),
		Product("t shirt", "T shirt long", ""),
		Product("tealight", "Tealight holder", ""),
		Product("tea light", "Tea light set", ""),
		Product("4in1", "4-in-1 pan", ""),
		Product("in-ear", "In‑ear phones", "with a non-breaking hyphen"),
		// Symbols that are terms although they are not letters. Skin tones and variation selectors
		// are ignored.
		Product("emoji", "Party 🎉 pack", ""),
		Product("thumb", "Sticker 👍🏽", ""),
		Product("heart", "I ❤️ tea", ""),
		// Scripts that put no spaces between words.
		Product("han", "青花瓷茶壶", ""),
		Product("kana", "コーヒーカップ", "日本製の陶器"),
		Product("halfwidth", "ｺｰﾋｰ豆", ""),
		Product("thai", "เสื้อยืดผ้าฝ้าย", ""),
		// Letters that fold to others: widths, ligatures, umlauts, and case in other alphabets.
		Product("fullwidth", "ＬＥＤ　ｌａｍｐ", ""),
		Product("strasse", "Straßenkarte", ""),
		Product("oe", "Smørrebrød board", ""),
		Product("ligature", "Oﬃce œuvre", ""),
		Product("greek", "Ἀθῆναι guide", ""),
		Product("cyrillic", "Ёлка игрушка", ""),
		Product("turkish", "İstanbul poster", ""),
		// Characters inside words: marks, a soft hyphen, an underscore, an apostrophe.
		Product("brand", "Millrace™ Enamel®", ""),
		Product("soft", "Water\u00adcolour set", ""),
		Product("snake", "usb_cable", ""),
		Product("possessive", "Children’s chair", ""),
	}
}

// Judged is the list of texts with the JudgedProducts that each must find, on every engine. SKUs
// are separated by spaces, and their order does not matter. An empty list means that nothing may be
// found, which guards against an analysis that matches too much.
var Judged = []struct{ Text, Want string }{
	// Accents and case do not matter.
	{norm.NFC.String("café"), "nfc nfd"},
	{norm.NFD.String("café"), "nfc nfd"},
	{"CAFE CREME", "nfc nfd"},
	// Stop words.
	{"about mug", "about nfc"},
	{"mug about", "about"}, // the last word may be unfinished, so even a stop word is required
	{"the mug", "about nfc"},
	// Compounds, in every spelling. The last word may be unfinished: "wi-f" is the beginning of
	// "wi-fi".
	{"wifi", "wifi wi-fi wi fi"},
	{"wi-fi", "wifi wi-fi wi fi"},
	{"wi fi", "wifi wi-fi wi fi"},
	{"WI‑FI router", "wifi"},
	{"wifi extender", "wi-fi"},
	{"wi-f", "wifi wi-fi wi fi"},
	{"tshirt", "tshirt t-shirt t shirt"},
	{"t-shirt", "tshirt t-shirt t shirt"},
	{"t shirts", "tshirt t-shirt t shirt"},
	{"tee-shirt", ""},
	{"tealights", "tealight tea light"},
	{"tea-light", "tealight tea light"},
	{"tea light", "tealight tea light"},
	{"4in1", "4in1"},
	{"4-in-1 pan", "4in1"},
	{"in-ear", "in-ear"},
	{"inear", "in-ear"},
	// Symbols.
	{"🎉", "emoji"},
	{"party 🎉", "emoji"},
	{"👍", "thumb"},
	{"👍🏿", "thumb"},
	{"❤", "heart"},
	// Text without spaces: a query finds a part of it, if its characters are next to each other.
	{"茶壶", "han"},
	{"茶", "han"},
	{"瓷茶", "han"},
	{"茶花", ""}, // the product has both characters, but not next to each other
	{"コーヒー", "kana halfwidth"},
	{"カップ", "kana"},
	{"陶器", "kana"},
	{"เสื้อ", "thai"},
	{"ฝ้าย", "thai"},
	// Folding.
	{"led lamp", "fullwidth"},
	{"ｌｅｄ", "fullwidth"},
	{"strassenkarte", "strasse"},
	{"STRASSENKARTE", "strasse"},
	{"smorrebrod", "oe"},
	{"office oeuvre", "ligature"},
	{"αθηναι", "greek"},
	{"елка", "cyrillic"},
	{"ЁЛКА", "cyrillic"},
	{"istanbul", "turkish"},
	{"ISTANBUL", "turkish"},
	// Marks, soft hyphens, underscores, apostrophes, and misspelling.
	{"millrace enamel", "brand"},
	{"watercolour", "soft"},
	{"usb cable", "snake"},
	{"usb_cable", "snake"},
	{"children's", "possessive"},
	{"childrens", "possessive"},  // without its apostrophe
	{"chilrden's", "possessive"}, // a transposition is one mistake
	{"chilrdem's", ""},           // two mistakes
	// Texts without a word. They must not match everything, as the empty text does.
	{"\u200b\u0000", ""},
	{"™", ""},
	{"\xff\xfe", ""},
}

// judgedQueries checks every text of Judged on one index with the JudgedProducts.
func judgedQueries(t *testing.T, open func() catalog.Index) {
	x := open()
	defer Close(t, x)
	Save(t, x, JudgedProducts()...)
	for _, c := range Judged {
		want := sku(c.Want)
		if got := slices.Sorted(slices.Values(Find(t, x, catalog.Query{Text: c.Text}))); !slices.Equal(got, want) {
			t.Errorf("%q finds %q, want %q", c.Text, got, want)
		}
	}
	// Categories are compared exactly, but after normalisation: both forms are the same category.
	for _, category := range []string{norm.NFC.String("Küche"), norm.NFD.String("Küche")} {
		if got := Find(t, x, catalog.Query{Category: category}); !slices.Equal(got, []string{"nfc"}) {
			t.Errorf("category %+q finds %q", category, got)
		}
	}
}

// sku splits a list of SKUs. Some SKUs contain a space, so these are protected before the split.
func sku(list string) []string {
	all := strings.Fields(strings.NewReplacer("wi fi", "wi\x00fi", "t shirt", "t\x00shirt", "tea light",
		"tea\x00light").Replace(list))
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], "\x00", " ")
	}
	slices.Sort(all)
	return all
}
