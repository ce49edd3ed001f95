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

// priceOf is money as the number that the decimal column keeps.
func priceOf(m *money.Money, currency string) (decimal128.Num, error) {
	units, nanos := m.GetUnits(), int64(m.GetNanos())
	switch {
	case m == nil:
		return decimal128.Num{}, errors.New("missing")
	case m.GetCurrencyCode() != currency:
		return decimal128.Num{}, fmt.Errorf("in %q, and the order in %q", m.GetCurrencyCode(), currency)
	case nanos <= -nanosPerUnit, nanos >= nanosPerUnit, units > 0 && nanos < 0, units < 0 && nanos > 0:
		return decimal128.Num{}, fmt.Errorf("%d units and %d nanos are no amount", units, nanos)
	}
	if units > math.MinInt64/nanosPerUnit && units < math.MaxInt64/nanosPerUnit { // nearly always
		return decimal128.FromI64(units*nanosPerUnit + nanos), nil
	}
	sum := new(big.Int).Mul(big.NewInt(units), big.NewInt(nanosPerUnit))
	return decimal128.FromBigInt(sum.Add(sum, big.NewInt(nanos))), nil
}

const nanosPerUnit = 1_000_000_000

// optionalTime is a time as columns keep it; zero where there is none.
func optionalTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return event.Time(t.AsTime()), nil
}

func requiredTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, fmt.Errorf("%s: missing", field)
	}
	return optionalTime(field, t)
}
