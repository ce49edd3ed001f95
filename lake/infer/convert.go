package infer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"
	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
)

// scalar is a converted value. The column's type determines which member is used.
type scalar struct {
	number  int64
	float   float64
	decimal decimal128.Num
	bytes   []byte
}

// convert converts a value to a type. ok is false if the type cannot represent the value exactly.
func convert(to columnar.Type, v *value) (s scalar, ok bool) {
	// Each conversion is exact or refused. What this column refuses, another one stores as it is.
	switch to := to.(type) {
	case iceberg.BooleanType:
		if v.kind == kindBool && v.raw[0] == 't' {
			s.number = 1
		}
		return s, v.kind == kindBool
	case iceberg.Int32Type:
		return whole(v, 32)
	case iceberg.Int64Type:
		return whole(v, 64)
	case iceberg.Float32Type:
		return float(v, 32)
	case iceberg.Float64Type:
		return float(v, 64)
	case iceberg.DecimalType:
		s.decimal, ok = decimalOf(v, to.Precision(), to.Scale())
		return s, ok
	}
	// All other types are filled from strings.
	if v.kind != kindString || !v.decoded {
		return s, false
	}
	switch to := to.(type) {
	case iceberg.StringType:
		return scalar{bytes: v.text}, true
	case iceberg.TimestampTzType:
		s.number, ok = micros(v)
	case iceberg.TimestampType:
		s.number, ok = localMicros(v.text)
	case iceberg.DateType:
		s.number, ok = dayOf(v.text)
	case iceberg.TimeType:
		s.number, ok = microsOfDay(v.text)
	case iceberg.UUIDType:
		const written = len("00000000-0000-0000-0000-000000000000") // the library also accepts other forms
		if id, err := uuid.ParseBytes(v.text); err == nil && len(v.text) == written {
			return scalar{bytes: id[:]}, true
		}
	case iceberg.BinaryType:
		s.bytes, ok = base64Of(v.text)
	case iceberg.FixedType:
		s.bytes, ok = base64Of(v.text)
		ok = ok && len(s.bytes) == to.Len()
	}
	return s, ok
}

// put appends a converted value. It returns false if the column has another type.
func put(to columnar.Column, s scalar) bool {
	switch to := to.(type) {
	case *columnar.Bools:
		to.Append(s.number != 0)
	case *columnar.Int32s:
		to.Append(int32(s.number))
	case *columnar.Int64s:
		to.Append(s.number)
	case *columnar.Float32s:
		to.Append(float32(s.float))
	case *columnar.Float64s:
		to.Append(s.float)
	case *columnar.Decimals:
		to.Append(s.decimal)
	case *columnar.Bytes:
		to.Append(s.bytes)
	case *columnar.Fixed:
		to.Append(s.bytes)
	default:
		return false
	}
	return true
}

// keyOf converts the name of an object's member to a map key. Integer keys must be in canonical
// form, so that different names never become one key.
func keyOf(to columnar.Type, m *value) (s scalar, ok bool) {
	if m.unnamed {
		return s, false
	}
	switch to.(type) {
	case iceberg.StringType:
		return scalar{bytes: m.name}, true
	// For example, "01" and "+1" are refused: they would become the key of "1".
	case iceberg.Int32Type, iceberg.Int64Type:
		n, err := strconv.ParseInt(string(m.name), 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != string(m.name) {
			return s, false
		}
		return convert(to, &value{kind: kindInteger, raw: m.name})
	}
	return s, false
}

// whole converts an integer that fits into the given number of bits.
func whole(v *value, bits int) (s scalar, ok bool) {
	if v.kind != kindInteger {
		return s, false
	}
	// It fails if the number needs more bits.
	n, err := strconv.ParseInt(string(v.raw), 10, bits)
	return scalar{number: n}, err == nil
}

// float converts a number that a float of the given size represents exactly.
func float(v *value, bits int) (s scalar, ok bool) {
	if v.kind != kindNumber && v.kind != kindInteger {
		return s, false
	}
	// Most fractions have no exact binary form. Exact means that the float reads back as the same
	// digits.
	f, ok := exactly(v.raw, bits)
	return scalar{float: f}, ok
}

// decimalOf converts a number that fits a decimal. It may be in a string, which is how amounts are
// often sent to protect them from conversion to doubles.
func decimalOf(v *value, precision, scale int) (d decimal128.Num, ok bool) {
	raw := v.raw
	switch {
	case v.kind == kindNumber || v.kind == kindInteger:
	case v.kind == kindString && v.decoded && isNumber(v.text):
		raw = v.text
	default:
		return d, false
	}
	digits, exponent := scientific(raw) // the value is 0.digits × 10^exponent
	negative := bytes.HasPrefix(digits, []byte("-"))
	digits = bytes.TrimPrefix(digits, []byte("-"))
	// Zero has no digits.
	if len(digits) == 0 {
		return d, true
	}
	const far = 1000 // larger exponents never fit, and sums of them might overflow
	// Number of zeros to append to get the unscaled value. Negative: too many decimal places.
	zeros := exponent - len(digits) + scale
	if exponent < -far || exponent > far || zeros < 0 || len(digits)+zeros > precision {
		return d, false
	}
	n, ok := new(big.Int).SetString(string(digits), 10)
	if !ok {
		return d, false
	}
	n.Mul(n, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(zeros)), nil))
	if negative {
		n.Neg(n)
	}
	return decimal128.FromBigInt(n), true
}

// isNumber reports whether text is a JSON number.
func isNumber(text []byte) bool {
	if len(text) == 0 || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return false
	}
	return json.Valid(text) && text[len(text)-1] > ' '
}

// dayOf parses a date such as 2024-01-01 as days since 1970.
func dayOf(text []byte) (int64, bool) {
	t, err := time.Parse(time.DateOnly, string(text))
	if err != nil || len(text) != len(time.DateOnly) {
		return 0, false
	}
	// The time is midnight in UTC, so the division is exact before 1970 as well.
	days := t.Unix() / (timeunit.MicrosPerDay / 1_000_000)
	return days, timeunit.OfDay(int32(days))
}

// microsOfDay parses a time of day such as 10:00, 10:00:00 or 10:00:00.000001 as microseconds since
// midnight.
func microsOfDay(text []byte) (int64, bool) {
	const least, most = len("15:04"), len("15:04:05.000000")
	if len(text) < least || len(text) > most || text[2] != ':' || bytes.IndexByte(text, ',') >= 0 {
		return 0, false
	}
	// A layout without a fraction also accepts one. Go accepts a comma in it, hence the check
	// above.
	layout := time.TimeOnly
	if len(text) == least {
		layout = "15:04"
	}
	t, err := time.Parse(layout, string(text))
	if err != nil {
		return 0, false
	}
	return t.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds(), true
}

// localMicros parses a time without a zone such as 2024-01-01T10:00:00.000001 as microseconds since
// 1970.
func localMicros(text []byte) (int64, bool) {
	const least, most = len("2006-01-02T15:04:05"), len("2006-01-02T15:04:05.000000")
	if len(text) < least || len(text) > most || bytes.IndexByte(text, ',') >= 0 {
		return 0, false
	}
	t, err := time.Parse("2006-01-02T15:04:05", string(text))
	if err != nil {
		return 0, false
	}
	return timeunit.Of(t)
}

// base64Of decodes standard base64 in canonical form.
func base64Of(text []byte) ([]byte, bool) {
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	// Encoding it again must give the same text, or the original could not be restored.
	return b, err == nil && base64.StdEncoding.EncodeToString(b) == string(text)
}
