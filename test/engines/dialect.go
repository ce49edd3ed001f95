package engines

import (
	"fmt"
	"strings"
)

// Dialect is the SQL of an engine. Its fields are formats, in which %s is an expression. All
// dialects must produce the same text for the same value, because the text is hashed:
//
//   - numbers and decimals in decimal notation, the latter with all digits of their scale,
//   - times as microseconds since 1970, in UTC,
//   - bytes in lower-case hexadecimal.
type Dialect struct {
	// Columns can have the names of keywords, so names are always quoted.
	quote string // quotes names
	// as has a format for each simple kind of a Column.
	as   map[string]string
	size string // size of a list
	join string // joins the elements of a list, %[1]s, taking %[2]s of each element e
	row  string // joins the texts of a row, %s
	// hash is the first 15 hexadecimal digits of the MD5 of a text, %s, as a number whose sum may
	// exceed 64 bits.
	hash string
}

// The dialects of the engines.
var (
	// Trino has no function for microseconds. to_unixtime returns seconds as a double, which is
	// exact enough to be rounded to microseconds for times of this century.
	TrinoSQL = Dialect{
		quote: `"`,
		as: map[string]string{
			"text": "CAST(%s AS varchar)", "number": "CAST(%s AS varchar)", "bool": "CAST(%s AS varchar)", "decimal": "CAST(%s AS varchar)",
			"time": "CAST(CAST(round(to_unixtime(%s) * 1000000) AS bigint) AS varchar)", "binary": "lower(to_hex(%s))", "entries": "CAST(cardinality(%s) AS varchar)",
		},
		size: "CAST(cardinality(%s) AS varchar)", join: "array_join(transform(%[1]s, e -> coalesce(%[2]s, '')), ',')", row: "array_join(ARRAY[%s], '|')",
		hash: "CAST(from_base(substr(lower(to_hex(md5(to_utf8(%s)))), 1, 15), 16) AS decimal(38,0))",
	}
	SparkSQL = Dialect{
		quote: "`",
		as: map[string]string{
			"text": "CAST(%s AS string)", "number": "CAST(%s AS string)", "bool": "CAST(%s AS string)", "decimal": "CAST(%s AS string)",
			"time": "CAST(unix_micros(%s) AS string)", "binary": "lower(hex(%s))", "entries": "CAST(size(%s) AS string)",
		},
		size: "CAST(size(%s) AS string)", join: "array_join(transform(%[1]s, e -> coalesce(%[2]s, '')), ',')", row: "concat_ws('|', %s)",
		hash: "CAST(conv(substr(md5(%s), 1, 15), 16, 10) AS decimal(38,0))",
	}
	DuckSQL = Dialect{
		quote: `"`,
		as: map[string]string{
			"text": "CAST(%s AS varchar)", "number": "CAST(%s AS varchar)", "bool": "CAST(%s AS varchar)", "decimal": "CAST(%s AS varchar)",
			"time": "CAST(epoch_us(%s) AS varchar)", "binary": "lower(hex(%s))", "entries": "CAST(cardinality(%s) AS varchar)",
		},
		size: "CAST(len(%s) AS varchar)", join: "array_to_string(list_transform(%[1]s, lambda e: coalesce(%[2]s, '')), ',')", row: "concat_ws('|', %s)",
		hash: "CAST(CAST('0x' || substr(md5(%s), 1, 15) AS bigint) AS hugeint)",
	}
	// MD5 returns bytes here, not hexadecimal digits: the first 8 bytes without the last 4 bits are
	// the first 15 digits. toDecimalString needs a fixed scale, so it fits decimals of scale 9
	// only.
	ClickHouseSQL = Dialect{
		quote: "`",
		as: map[string]string{
			"text": "toString(%s)", "number": "toString(%s)", "bool": "if(%s, 'true', 'false')", "decimal": "toDecimalString(%s, 9)",
			"time": "toString(toUnixTimestamp64Micro(%s))", "binary": "lower(hex(%s))", "entries": "toString(length(%s))",
		},
		size: "toString(length(%s))", join: "arrayStringConcat(arrayMap(e -> coalesce(%[2]s, ''), %[1]s), ',')", row: "arrayStringConcat([%s], '|')",
		hash: "toInt256(bitShiftRight(reinterpretAsUInt64(reverse(substring(MD5(%s), 1, 8))), 4))",
	}
)

// Name returns a quoted name.
func (d Dialect) Name(name string) string { return d.quote + name + d.quote }

// text returns an expression for a column as text. The expression is never null, because a null
// would make the text of the whole row null, or be left out of it.
func (d Dialect) text(c Column) string {
	parts := make([]string, len(c.Path))
	for i, p := range c.Path {
		parts[i] = d.Name(p)
	}
	value := "t." + strings.Join(parts, ".")
	switch c.Kind {
	case "size":
		value = fmt.Sprintf(d.size, value)
	case "elements":
		element := "e"
		if c.Element != "" {
			element += "." + d.Name(c.Element)
		}
		value = fmt.Sprintf(d.join, value, element)
	default:
		value = fmt.Sprintf(d.as[c.Kind], value)
	}
	return "coalesce(" + value + ", '" + c.zero() + "')"
}

// Sum returns the query for the count and the hash of a table, as in Summed. from is the table in
// the engine's own notation. The query reads every value of the columns and returns a single row.
func (d Dialect) Sum(from string, columns []Column) string {
	texts := make([]string, len(columns))
	for i, c := range columns {
		texts[i] = d.text(c)
	}
	return "SELECT count(*) AS n, coalesce(sum(" + fmt.Sprintf(d.hash,
		fmt.Sprintf(d.row, strings.Join(texts, ", "))) + "), 0) AS h FROM " + from + " t"
}
