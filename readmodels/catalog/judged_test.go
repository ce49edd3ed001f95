package catalog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// A shop window with what search engines trip over.
func judgedProducts() []*catalogv1.Product {
	return []*catalogv1.Product{
		product("nfc", norm.NFC.String("Café crème mug"), "", norm.NFD.String("Küche")),
		product("nfd", norm.NFD.String("Café crème bowl"), ""),
		product("about", "A book about mugs", "All about the mug"),
		product("wifi", "WiFi router", ""),
		product("wi-fi", "Wi-Fi extender", ""),
		product("wi fi", "Wi Fi antenna", ""),
		product("tshirt", "Tshirt, plain", ""),
		product("t-shirt", "T-Shirts with stripes", ""),
		product("t shirt", "T shirt long", ""),
		product("tealight", "Tealight holder", ""),
		product("tea light", "Tea light set", ""),
		product("4in1", "4-in-1 pan", ""),
		product("in-ear", "In‑ear phones", "with a non-breaking hyphen"),
		product("emoji", "Party 🎉 pack", ""),
		product("thumb", "Sticker 👍🏽", ""),
		product("heart", "I ❤️ tea", ""),
		product("han", "青花瓷茶壶", ""),
		product("kana", "コーヒーカップ", "日本製の陶器"),
		product("halfwidth", "ｺｰﾋｰ豆", ""),
		product("thai", "เสื้อยืดผ้าฝ้าย", ""),
		product("fullwidth", "ＬＥＤ　ｌａｍｐ", ""),
		product("strasse", "Straßenkarte", ""),
		product("oe", "Smørrebrød board", ""),
		product("ligature", "Oﬃce œuvre", ""),
		product("greek", "Ἀθῆναι guide", ""),
		product("cyrillic", "Ёлка игрушка", ""),
		product("turkish", "İstanbul poster", ""),
		product("brand", "Millrace™ Enamel®", ""),
		product("soft", "Water\u00adcolour set", ""),
		product("snake", "usb_cable", ""),
		product("possessive", "Children’s chair", ""),
	}
}

// judged says what each text must find, on every engine.
var judged = []struct{ text, want string }{
	{norm.NFC.String("café"), "nfc nfd"},
	{norm.NFD.String("café"), "nfc nfd"},
	{"CAFE CREME", "nfc nfd"},
	{"about mug", "about nfc"},
	{"mug about", "about"}, // the last word may become another one, so it is asked for
	{"the mug", "about nfc"},
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
	{"🎉", "emoji"},
	{"party 🎉", "emoji"},
	{"👍", "thumb"},
	{"👍🏿", "thumb"},
	{"❤", "heart"},
	{"茶壶", "han"},
	{"茶", "han"},
	{"瓷茶", "han"},
	{"茶花", ""}, // both characters are there, but not side by side
	{"コーヒー", "kana halfwidth"},
	{"カップ", "kana"},
	{"陶器", "kana"},
	{"เสื้อ", "thai"},
	{"ฝ้าย", "thai"},
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
	{"millrace enamel", "brand"},
	{"watercolour", "soft"},
	{"usb cable", "snake"},
	{"usb_cable", "snake"},
	{"children's", "possessive"},
	{"childrens", "possessive"},  // without its apostrophe
	{"chilrden's", "possessive"}, // two letters changed places: one mistake
	{"chilrdem's", ""},           // two mistakes
	{"\u200b\u0000", ""},
	{"™", ""},
	{"\xff\xfe", ""},
}

func TestJudgedQueries(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer closed(t, x)
		save(t, x, judgedProducts()...)
		for _, c := range judged {
			want := sku(c.want)
			if got := slices.Sorted(slices.Values(find(t, x, Query{Text: c.text}))); !slices.Equal(got, want) {
				t.Errorf("%q finds %q, want %q", c.text, got, want)
			}
		}
		for _, category := range []string{norm.NFC.String("Küche"), norm.NFD.String("Küche")} {
			if got := find(t, x, Query{Category: category}); !slices.Equal(got, []string{"nfc"}) {
				t.Errorf("category %+q finds %q", category, got)
			}
		}
	})
}

// sku reads a list of SKUs, of which some have a space.
func sku(list string) []string {
	all := strings.Fields(strings.NewReplacer("wi fi", "wi\x00fi", "t shirt", "t\x00shirt", "tea light", "tea\x00light").Replace(list))
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], "\x00", " ")
	}
	slices.Sort(all)
	return all
}

// Whatever is typed, both engines find the same.
func TestEnginesFindTheSame(t *testing.T) {
	t.Parallel()
	engines := map[string]Index{}
	for name, place := range adapters {
		x := openAt(t, place(t))
		defer closed(t, x)
		save(t, x, judgedProducts()...)
		engines[name] = x
	}
	var vocabulary []string
	for _, p := range judgedProducts() {
		vocabulary = append(vocabulary, strings.Fields(p.Title+" "+p.Description)...)
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same texts in each run
	found := 0
	for range 150 {
		var words []string
		for range 1 + random.IntN(3) {
			w := []rune(vocabulary[random.IntN(len(vocabulary))])
			switch at := random.IntN(len(w)); random.IntN(4) {
			case 0:
				w = w[:at+1]
			case 1:
				w[at] = []rune("aé茶🎉-'")[random.IntN(6)]
			}
			words = append(words, string(w))
		}
		text := strings.Join(words, []string{" ", "-", "", ", "}[random.IntN(4)])
		answers := map[string]string{}
		for name, x := range engines {
			page, err := x.Search(t.Context(), Query{Text: text, Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			var skus []string
			for _, p := range page.Products {
				skus = append(skus, p.Sku)
			}
			slices.Sort(skus)
			answers[name] = fmt.Sprint(skus)
			found += len(skus)
		}
		if answers["bleve"] != answers["elasticsearch"] {
			t.Errorf("%q: %v", text, answers)
		}
	}
	if found == 0 {
		t.Error("nothing was found at all")
	}
}

// A text finds itself, however it is normalised and cased.
var version atomic.Int64

func TestTextsFindThemselves(t *testing.T) {
	t.Parallel()
	x := openAt(t, adapters["bleve"](t))
	defer closed(t, x)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("aeßøéТЁя茶コｺสื้👍🎉1-'’_. \u0301\u00ad")), 1, 20, -1).Draw(t, "text")
		if err := x.Save(context.Background(), []*catalogv1.Product{{Sku: "1", Title: text, Version: uint64(version.Add(1))}}); err != nil {
			t.Fatal(err)
		}
		for _, as := range []string{text, norm.NFC.String(text), norm.NFD.String(text), strings.ToUpper(text)} {
			page, err := x.Search(context.Background(), Query{Text: as, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			if wanted := len(clauses(text)) > 0; wanted != (len(page.Products) == 1) {
				t.Fatalf("%+q as %+q: found %v, its terms are %+v", text, as, wanted, termsOf(text))
			}
		}
	})
}
