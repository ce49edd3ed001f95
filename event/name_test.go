package event_test

import (
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/type/money"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"":                  "",
		"85123A":            "",
		"BANK CHARGES":      "",
		"Rechnung Nr. 7/ß":  "",
		"注文 12":             "",
		" MUG":              "begins with a space",
		"MUG ":              "ends with a space",
		"BANK  CHARGES":     "two spaces",
		"MUG\x00":           "U+0000",
		"MUG\n":             "U+000A",
		"MU\tG":             "U+0009",
		"MUG\u00a0":         "U+00A0",
		"M\u200bUG":         "U+200B", // zero width space
		"MUG\u200d":         "U+200D",
		"\ufeffMUG":         "U+FEFF",
		"M\u00adUG":         "U+00AD", // soft hyphen
		"M\u202eUG":         "U+202E", // right to left
		"M\u3164UG":         "U+3164", // Hangul filler
		"M\u034fUG":         "U+034F",
		"MUG\ufe0f":         "U+FE0F",
		"MUG\u2028":         "U+2028",
		"MUG\u3000":         "U+3000",
		"MUG\u2800":         "U+2800",
		"MUG\ue000":         "U+E000",
		"MUG\U000e0041":     "U+E0041", // tags
		string([]byte{255}): "UTF-8",
	} {
		err := event.CheckName(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

// TestCanonicalFormsAreStable checks that canonical forms do not change when they are normalised
// again.
func TestCanonicalFormsAreStable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").Draw(t, "id")
		if once := event.CanonicalID(id); event.CanonicalID(once) != once || event.CanonicalID(strings.ToUpper(id)) != once {
			t.Errorf("%q became %q, which is not final", id, once)
		}
		s := rapid.String().Draw(t, "s")
		if once := event.CanonicalName(s); event.CanonicalName(once) != once {
			t.Errorf("%q became %q, which is not final", s, once)
		}
	})
}

func TestCanonicalID(t *testing.T) {
	t.Parallel()
	const id = "0198c5a0-7c1e-7abc-8def-0123456789ab"
	for in, want := range map[string]string{
		id: id, strings.ToUpper(id): id, "0198C5a0-7c1e-7ABC-8def-0123456789ab": id,
		"{" + id + "}": "{" + id + "}", "urn:uuid:" + id: "urn:uuid:" + id,
		strings.ReplaceAll(id, "-", ""): strings.ReplaceAll(id, "-", ""),
		"MUG":                           "MUG", "": "",
	} {
		if got := event.CanonicalID(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestTokenHasCanonicalStream(t *testing.T) {
	t.Parallel()
	const id = "0198C5A0-7C1E-7ABC-8DEF-0123456789AB"
	for service, want := range map[string]string{
		"order": strings.ToLower(id), "customer": strings.ToLower(id),
		"catalog": id, "inventory": id, // a SKU may look like a UUID
	} {
		got, err := event.ParseToken(event.Token{Service: service, Stream: id, Version: 1}.String())
		if err != nil || got.Stream != want {
			t.Errorf("%s: %q, %v; want %q", service, got.Stream, err, want)
		}
	}
}

func TestCurrencies(t *testing.T) {
	t.Parallel()
	amount := func(code string, nanos int32) *money.Money {
		return &money.Money{CurrencyCode: code, Units: 9, Nanos: nanos}
	}
	own := event.Currencies{"GBP": 3, "PTS": 0, "XBT": 8}
	for _, c := range []struct {
		currencies event.Currencies
		m          *money.Money
		known      bool
		fits       bool
	}{
		{nil, amount("GBP", 990_000_000), true, true},
		{nil, amount("GBP", 999_000_000), true, false},
		{nil, amount("GBP", 1), true, false},
		{nil, amount("EUR", -10_000_000), true, true},
		{nil, amount("JPY", 0), true, true},
		{nil, amount("JPY", 500_000_000), true, false},
		{nil, amount("KWD", 999_000_000), true, true},
		{nil, amount("KWD", 999_900_000), true, false},
		{nil, amount("CLF", 999_900_000), true, true},
		{nil, amount("ZZZ", 0), false, false},
		{nil, amount("XXX", 0), false, false}, // "no currency"
		{nil, amount("XTS", 0), false, false}, // for tests
		{nil, amount("XAU", 0), false, false}, // gold has no number of decimals
		{nil, amount("DEM", 0), false, false}, // obsolete since 2002
		{own, amount("GBP", 999_000_000), true, true},
		{own, amount("GBP", 999_900_000), true, false},
		{own, amount("PTS", 0), true, true},
		{own, amount("PTS", 500_000_000), true, false},
		{own, amount("XBT", 10), true, true},
		{own, amount("EUR", 999_000_000), true, false},
	} {
		if _, known := c.currencies.Decimals(c.m.GetCurrencyCode()); known != c.known || c.currencies.Fits(c.m) != c.fits {
			t.Errorf("%v of %v: known %v, fits %v", c.m, c.currencies, known, c.currencies.Fits(c.m))
		}
	}
	for _, bad := range []event.Currencies{{"gbp": 2}, {"POUND": 2}, {"GBP": -1}, {"GBP": 10}} {
		if bad.Check() == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}
