package tables

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
)

// priceOf returns an amount as the unscaled value of a money column: nine decimal places. It
// refuses another currency and amounts whose parts have different signs.
func priceOf(m *money.Money, currency string) (decimal128.Num, error) {
	units, nanos := m.GetUnits(), int64(m.GetNanos())
	switch {
	case m == nil:
		return decimal128.Num{}, errors.New("missing")
	case m.GetCurrencyCode() != currency:
		return decimal128.Num{}, fmt.Errorf("currency is %q, want %q", m.GetCurrencyCode(), currency)
	// As google.type.Money requires: less than one unit of nanos, with the sign of units.
	case nanos <= -nanosPerUnit, nanos >= nanosPerUnit, units > 0 && nanos < 0, units < 0 && nanos > 0:
		return decimal128.Num{}, fmt.Errorf("%d units and %d nanos are not a valid amount", units, nanos)
	}
	if units > math.MinInt64/nanosPerUnit && units < math.MaxInt64/nanosPerUnit { // fits into 64 bits, nearly always
		return decimal128.FromI64(units*nanosPerUnit + nanos), nil
	}
	// A decimal of 38 digits has room for any 64-bit number of units plus nine decimal places.
	sum := new(big.Int).Mul(big.NewInt(units), big.NewInt(nanosPerUnit))
	return decimal128.FromBigInt(sum.Add(sum, big.NewInt(nanos))), nil
}

// nanosPerUnit matches the scale of money columns, so an amount in nanos is the unscaled value.
const nanosPerUnit = 1_000_000_000

// optionalTime returns a time with the precision of columns, or the zero time for nil. field is its
// name in errors.
func optionalTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	// This fails for years outside of 1 to 9999 and for invalid nanos.
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return event.Time(t.AsTime()), nil
}

// requiredTime is optionalTime for a field that must be set.
func requiredTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, fmt.Errorf("%s: missing", field)
	}
	return optionalTime(field, t)
}
