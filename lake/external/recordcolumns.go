package external

import (
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
)

// Option adds optional columns to a table.
type Option func(*layout)

// Headers adds a column _headers with the record's headers, a map of names to bytes.
func Headers() Option { return func(l *layout) { l.headers = true } }

// layout determines the columns for the record itself. They come before the origin columns, which
// package declare adds.
type layout struct{ headers bool }

func layoutOf(options []Option) (l layout) {
	for _, o := range options {
		o(&l)
	}
	return l
}

const (
	keyColumn       = "_key"
	timestampColumn = "_timestamp"
	rawTimeColumn   = "_timestamp_raw"
	headersColumn   = "_headers"
	origin          = "_" // prefix of the names of the origin columns
)

// columns returns the columns for the record itself.
func (l layout) columns() []columnar.Field {
	p := iceberg.PrimitiveTypes
	columns := []columnar.Field{
		{Name: keyColumn, Type: p.Binary, Doc: "the record's key; null where it has none"},
		{Name: timestampColumn, Type: p.TimestampTz, Doc: "the record's own time"},
		{Name: rawTimeColumn, Type: p.Int64, Doc: "the record's timestamp as it is, where that is no time in milliseconds; else null"},
	}
	// Headers take space in every row, so they are optional.
	if l.headers {
		columns = append(columns, columnar.Field{
			Name: headersColumn, Doc: "the record's headers; of several of one name the last", Type: columnar.Map{
				Key:   columnar.Field{Name: "key", Type: p.String, Required: true},
				Value: columnar.Field{Name: "value", Type: p.Binary},
			},
		})
	}
	return columns
}

// reserved returns the names that fields of values must not have.
func (l layout) reserved() []string {
	var names []string
	// The origin columns follow those of the record itself.
	for _, c := range slices.Concat(l.columns(), declare.Table{Origin: origin}.OriginColumns()) {
		names = append(names, c.Name)
	}
	return names
}

// reserves reports whether a name belongs to the record itself or to the origin columns.
func (l layout) reserves(name string) bool { return slices.Contains(l.reserved(), name) }

// recordColumns fills the columns for the record itself.
type recordColumns struct {
	key       *columnar.Bytes
	timestamp *columnar.Int64s
	rawTime   *columnar.Int64s
	headers   *headers // nil without the option Headers
}

// bind finds the columns by name.
func (l layout) bind(to *columnar.Columns) (p recordColumns, err error) {
	// A column of another type leaves its writer nil, which is reported below.
	for i, f := range to.Fields() {
		switch f.Name {
		case keyColumn:
			p.key, _ = to.Column(i).(*columnar.Bytes)
		case timestampColumn:
			p.timestamp, _ = to.Column(i).(*columnar.Int64s)
		case rawTimeColumn:
			p.rawTime, _ = to.Column(i).(*columnar.Int64s)
		case headersColumn:
			if l.headers {
				p.headers = headersIn(to.Column(i))
			}
		}
	}
	// An existing table may have columns of these names with other types.
	if p.key == nil || p.timestamp == nil || p.rawTime == nil || l.headers && p.headers == nil {
		return p, fmt.Errorf("the table's columns %s are not those of a landed topic", strings.Join(l.reserved(), ", "))
	}
	return p, nil
}

// noTimestamp is Kafka's timestamp for records without one.
const noTimestamp = -1

// append appends the record's own values. Timestamps that are not valid times are kept as raw
// numbers.
func (p recordColumns) append(r declare.Record) declare.Appended {
	if r.Key == nil {
		p.key.AppendNull()
	} else {
		p.key.Append(r.Key)
	}
	// -1 means that the record has no timestamp, although it would be a valid time.
	if at, ok := timeunit.OfMillis(r.Millis); ok && r.Millis != noTimestamp {
		p.timestamp.Append(at)
		p.rawTime.AppendNull()
	} else {
		p.timestamp.AppendNull()
		p.rawTime.Append(r.Millis)
	}
	if p.headers != nil {
		p.headers.append(r.Headers)
	}
	return declare.Appended{Rows: 1, AsOf: r.Time}
}

// headers fills the map column of headers.
type headers struct {
	pairs        *columnar.Maps
	names, bytes *columnar.Bytes
}

// headersIn returns the writer of the headers column, or nil if the column has another type.
func headersIn(col columnar.Column) *headers {
	pairs, ok := col.(*columnar.Maps)
	if !ok {
		return nil
	}
	names, ok1 := pairs.Keys().(*columnar.Bytes)
	values, ok2 := pairs.Values().(*columnar.Bytes)
	if !ok1 || !ok2 {
		return nil
	}
	return &headers{pairs, names, values}
}

// append appends a record's headers. A map has each name once: the last header of a name wins, as
// in Kafka's clients.
func (h *headers) append(all []event.Header) {
	for i, header := range all {
		// Kafka allows any bytes in a name, but a string column only UTF-8.
		name := utf8Name(header.Key)
		// A later header of the same name follows.
		// Quadratic, but records have few headers.
		if slices.ContainsFunc(all[i+1:], func(later event.Header) bool { return utf8Name(later.Key) == name }) {
			continue
		}
		h.names.AppendString(name)
		if header.Value == nil {
			h.bytes.AppendNull()
		} else {
			h.bytes.Append(header.Value)
		}
	}
	h.pairs.Append()
}

// utf8Name returns a header name as valid UTF-8.
func utf8Name(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }
