package event

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/type/money"
)

// Money is google.type.Money: whole units and billionths of a unit ("nanos"), with the same sign.
// Arithmetic is exact, and a result that does not fit is an error.
var (
	// ErrMoney is wrapped by errors about malformed amounts and about amounts of different
	// currencies.
	ErrMoney = errors.New("not an amount of money")
	// ErrMoneyOverflow is wrapped by errors about results beyond 2^63 units.
	ErrMoneyOverflow = errors.New("amount of money is too large")
)

const (
	nanosPerUnit = 1_000_000_000
	nanosDigits  = 9
)

// ValidateMoney returns an error that wraps ErrMoney unless m is well formed: a currency of three
// capital letters, fewer nanos than one unit, and one sign.
func ValidateMoney(m *money.Money) error {
	switch units, nanos := m.GetUnits(), m.GetNanos(); {
	case m == nil:
		return fmt.Errorf("%w: it is not set", ErrMoney)
	case !isCurrency(m.GetCurrencyCode()):
		return fmt.Errorf("%w: currency %q is not three capital letters", ErrMoney, m.GetCurrencyCode())
	case nanos <= -nanosPerUnit || nanos >= nanosPerUnit:
		return fmt.Errorf("%w: %d nanos are one unit or more", ErrMoney, nanos)
	case units > 0 && nanos < 0, units < 0 && nanos > 0:
		return fmt.Errorf("%w: units %d and nanos %d differ in sign", ErrMoney, units, nanos)
	}
	return nil
}

// isCurrency reports whether s has the form of a currency code.
func isCurrency(s string) bool {
	if len(s) != 3 {
		return false
	}
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			return false
		}
	}
	return true
}

// IsNegative reports whether a well-formed amount is below zero.
func IsNegative(m *money.Money) bool { return m.GetUnits() < 0 || m.GetNanos() < 0 }

// AddMoney returns a + b. Both must be well formed and of the same currency, otherwise the error
// wraps ErrMoney. If the sum does not fit, it wraps ErrMoneyOverflow.
func AddMoney(a, b *money.Money) (*money.Money, error) {
	if err := errors.Join(ValidateMoney(a), ValidateMoney(b)); err != nil {
		return nil, err
	}
	if a.GetCurrencyCode() != b.GetCurrencyCode() {
		return nil, fmt.Errorf("%w: %s and %s cannot be added", ErrMoney, a.GetCurrencyCode(), b.GetCurrencyCode())
	}
	units, ok := addInt64(a.GetUnits(), b.GetUnits())
	nanos := a.GetNanos() + b.GetNanos() // below two units, so it fits
	carry := int64(nanos / nanosPerUnit)
	nanos %= nanosPerUnit
	units, ok2 := addInt64(units, carry)
	switch { // give both parts the same sign
	case units > 0 && nanos < 0:
		units, nanos = units-1, nanos+nanosPerUnit
	case units < 0 && nanos > 0:
		units, nanos = units+1, nanos-nanosPerUnit
	}
	if !ok || !ok2 {
		return nil, fmt.Errorf("%w: %s + %s %s", ErrMoneyOverflow, MoneyString(a), MoneyString(b), a.GetCurrencyCode())
	}
	return &money.Money{CurrencyCode: a.GetCurrencyCode(), Units: units, Nanos: nanos}, nil
}

// addInt64 reports an overflow in ok.
func addInt64(a, b int64) (sum int64, ok bool) {
	sum = a + b
	return sum, (sum > a) == (b > 0)
}

// MulMoney returns m × n. If m is malformed the error wraps ErrMoney; if the product does not fit,
// ErrMoneyOverflow.
func MulMoney(m *money.Money, n int64) (*money.Money, error) {
	if err := ValidateMoney(m); err != nil {
		return nil, err
	}
	// Multiply magnitudes: nanos × n in 128 bits results in the nanos and a carry into the units.
	factor := magnitude(n)
	hi, lo := bits.Mul64(magnitude(int64(m.GetNanos())), factor)
	carry, nanos := bits.Div64(hi, lo, nanosPerUnit)
	over, units := bits.Mul64(magnitude(m.GetUnits()), factor)
	units, overflow := bits.Add64(units, carry, 0)

	negative := IsNegative(m) != (n < 0)
	limit := uint64(math.MaxInt64)
	if negative {
		limit++ // -2^63 fits
	}
	if over != 0 || overflow != 0 || units > limit {
		return nil, fmt.Errorf("%w: %s %s × %d", ErrMoneyOverflow, MoneyString(m), m.GetCurrencyCode(), n)
	}
	product := &money.Money{CurrencyCode: m.GetCurrencyCode(), Units: int64(units), Nanos: int32(nanos)}
	if negative {
		product.Units, product.Nanos = -product.Units, -product.Nanos
	}
	return product, nil
}

// magnitude returns |n| as unsigned, because that of -2^63 does not fit an int64.
func magnitude(n int64) uint64 {
	if n < 0 {
		return -uint64(n)
	}
	return uint64(n)
}

// MoneyString returns a well-formed amount as a decimal without currency and without trailing
// zeros: "12.5", "-0.001", "3".
func MoneyString(m *money.Money) string {
	b := make([]byte, 0, 32)
	if IsNegative(m) {
		b = append(b, '-')
	}
	b = strconv.AppendUint(b, magnitude(m.GetUnits()), 10)
	if nanos := magnitude(int64(m.GetNanos())); nanos != 0 {
		b = fmt.Appendf(b, ".%0*d", nanosDigits, nanos)
		b = []byte(strings.TrimRight(string(b), "0"))
	}
	return string(b)
}

// ParseMoney reads the form that MoneyString writes: an optional minus, digits, and optionally a
// point with one to nine decimals. Its errors wrap ErrMoney, or ErrMoneyOverflow if the number is
// too large.
func ParseMoney(currency, decimal string) (*money.Money, error) {
	digits, negative := strings.CutPrefix(decimal, "-")
	whole, fraction, point := strings.Cut(digits, ".")
	if !isDigits(whole) || point && (!isDigits(fraction) || len(fraction) > nanosDigits) {
		return nil, fmt.Errorf("%w: %q: want digits, a point and at most %d decimals", ErrMoney, decimal, nanosDigits)
	}
	sign := ""
	if negative {
		sign = "-"
	}
	units, err := strconv.ParseInt(sign+whole, 10, 64)
	if err != nil { // digits are checked, so only the range can be wrong
		return nil, fmt.Errorf("%w: %s %s", ErrMoneyOverflow, decimal, currency)
	}
	nanos, err := strconv.ParseInt(sign+fraction+strings.Repeat("0", nanosDigits-len(fraction)), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrMoney, decimal, err)
	}
	m := &money.Money{CurrencyCode: currency, Units: units, Nanos: int32(nanos)}
	if err := ValidateMoney(m); err != nil {
		return nil, err
	}
	return m, nil
}

// isDigits reports whether s is a number of ASCII digits. strconv accepts signs and more.
func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
