package event_test

import (
	"errors"
	"math"
	"math/big"
	"testing"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

func gbp(units int64, nanos int32) *money.Money {
	return &money.Money{CurrencyCode: "GBP", Units: units, Nanos: nanos}
}

func TestValidateMoney(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		m  *money.Money
		ok bool
	}{
		"zero":                   {gbp(0, 0), true},
		"positive":               {gbp(2, 550_000_000), true},
		"negative":               {gbp(-2, -550_000_000), true},
		"less than a unit":       {gbp(0, -1), true},
		"the largest":            {gbp(math.MaxInt64, 999_999_999), true},
		"the smallest":           {gbp(math.MinInt64, -999_999_999), true},
		"absent":                 {nil, false},
		"no currency":            {&money.Money{Units: 1}, false},
		"currency in lower case": {&money.Money{CurrencyCode: "gbp"}, false},
		"currency too long":      {&money.Money{CurrencyCode: "GBPX"}, false},
		"a unit of nanos":        {gbp(0, 1_000_000_000), false},
		"minus a unit of nanos":  {gbp(0, -1_000_000_000), false},
		"signs differ":           {gbp(1, -1), false},
		"signs differ too":       {gbp(-1, 1), false},
	} {
		err := event.ValidateMoney(c.m)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, event.ErrMoney) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseMoney(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]*money.Money{
		"0":                              gbp(0, 0),
		"-0":                             gbp(0, 0),
		"2.55":                           gbp(2, 550_000_000),
		"-2.55":                          gbp(-2, -550_000_000),
		"-0.000000001":                   gbp(0, -1),
		"007.10":                         gbp(7, 100_000_000),
		"9223372036854775807.999999999":  gbp(math.MaxInt64, 999_999_999),
		"-9223372036854775808.999999999": gbp(math.MinInt64, -999_999_999),
	} {
		got, err := event.ParseMoney("GBP", in)
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]error{
		"": event.ErrMoney, "-": event.ErrMoney, ".5": event.ErrMoney, "5.": event.ErrMoney,
		"+5": event.ErrMoney, "--5": event.ErrMoney,
		"1e3": event.ErrMoney, " 5": event.ErrMoney, "1,5": event.ErrMoney, "1.5.5": event.ErrMoney,
		"0x1": event.ErrMoney, "٣": event.ErrMoney,
		"1.0000000001": event.ErrMoney, "nan": event.ErrMoney,
		"9223372036854775808": event.ErrMoneyOverflow, "-9223372036854775809": event.ErrMoneyOverflow,
	} {
		if got, err := event.ParseMoney("GBP", in); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	if _, err := event.ParseMoney("pounds", "1"); !errors.Is(err, event.ErrMoney) {
		t.Errorf("an invalid currency: %v", err)
	}
}

func TestAddMoneyRejectsMixedCurrencies(t *testing.T) {
	t.Parallel()
	sum, err := event.AddMoney(gbp(1, 0), &money.Money{CurrencyCode: "EUR", Units: 1})
	if !errors.Is(err, event.ErrMoney) {
		t.Fatalf("£1 + €1 = %v, %v", sum, err)
	}
}

func TestMulMoneyLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		m    *money.Money
		n    int64
		want *money.Money // nil if the result is too large
	}{
		"the smallest once":          {gbp(math.MinInt64, -999_999_999), 1, gbp(math.MinInt64, -999_999_999)},
		"down to the smallest":       {gbp(1<<62, 0), -2, gbp(math.MinInt64, 0)},
		"one unit by the smallest":   {gbp(1, 0), math.MinInt64, gbp(math.MinInt64, 0)},
		"a nano by the largest":      {gbp(0, 1), math.MaxInt64, gbp(math.MaxInt64/1_000_000_000, math.MaxInt64%1_000_000_000)},
		"up to beyond the largest":   {gbp(1<<62, 0), 2, nil},
		"the smallest turned around": {gbp(math.MinInt64, 0), -1, nil},
		"a carry too many":           {gbp(math.MaxInt64/2, 999_999_999), 2, gbp(math.MaxInt64, 999_999_998)},
		"and one more":               {gbp(math.MaxInt64/2+1, 0), 2, nil},
	} {
		got, err := event.MulMoney(c.m, c.n)
		if c.want == nil && !errors.Is(err, event.ErrMoneyOverflow) ||
			c.want != nil && (err != nil || !proto.Equal(got, c.want)) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}

// TestMoneyArithmeticIsExact compares the arithmetic with exact numbers. A result that does not fit
// must be an error.
func TestMoneyArithmeticIsExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, n := amount(t, "a"), amount(t, "b"), rapid.Int64().Draw(t, "n")

		sum, err := event.AddMoney(a, b)
		compare(t, sum, err, new(big.Int).Add(nanos(a), nanos(b)))

		product, err := event.MulMoney(a, n)
		compare(t, product, err, new(big.Int).Mul(nanos(a), big.NewInt(n)))
	})
}

func TestMoneyStringRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := amount(t, "m")
		got, err := event.ParseMoney("GBP", event.MoneyString(m))
		if err != nil || !proto.Equal(got, m) {
			t.Fatalf("%v is written %q and read %v, %v", m, event.MoneyString(m), got, err)
		}
		if event.IsNegative(m) != (nanos(m).Sign() < 0) {
			t.Fatalf("IsNegative(%v) = %v", m, event.IsNegative(m))
		}
	})
}

func FuzzParseMoney(f *testing.F) {
	for _, s := range []string{"0", "-2.55", "8911407.904", "9223372036854775807.999999999", "1.", "1e9"} {
		f.Add("GBP", s)
	}
	f.Fuzz(func(t *testing.T, currency, decimal string) {
		m, err := event.ParseMoney(currency, decimal)
		if err != nil {
			if !errors.Is(err, event.ErrMoney) && !errors.Is(err, event.ErrMoneyOverflow) {
				t.Fatalf("%q: untyped error %v", decimal, err)
			}
			return
		}
		if err := event.ValidateMoney(m); err != nil {
			t.Fatalf("%q gave %v: %v", decimal, m, err)
		}
		want, ok := new(big.Rat).SetString(decimal)
		if !ok || want.Cmp(new(big.Rat).SetFrac(nanos(m), big.NewInt(1e9))) != 0 {
			t.Fatalf("%q gave %v", decimal, m)
		}
	})
}

// amount draws a well-formed amount, often one near a limit.
func amount(t *rapid.T, label string) *money.Money {
	m := gbp(rapid.Int64().Draw(t, label+" units"), rapid.Int32Range(0, 999_999_999).Draw(t, label+" nanos"))
	if m.Units < 0 || m.Units == 0 && rapid.Bool().Draw(t, label+" negative") {
		m.Nanos = -m.Nanos
	}
	return m
}

// nanos returns the amount as one exact integer.
func nanos(m *money.Money) *big.Int {
	n := new(big.Int).Mul(big.NewInt(m.GetUnits()), big.NewInt(1e9))
	return n.Add(n, big.NewInt(int64(m.GetNanos())))
}

func compare(t *rapid.T, got *money.Money, err error, want *big.Int) {
	t.Helper()
	units := new(big.Int).Quo(want, big.NewInt(1e9))
	if !units.IsInt64() {
		if !errors.Is(err, event.ErrMoneyOverflow) {
			t.Fatalf("want an overflow, got %v, %v", got, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("want %v nanos: %v", want, err)
	}
	if err := event.ValidateMoney(got); err != nil {
		t.Fatal(err)
	}
	if nanos(got).Cmp(want) != 0 {
		t.Fatalf("got %v, want %v nanos", got, want)
	}
}
