package sql

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// MaxTableRows is the maximum number of rows in FormatTable.
const MaxTableRows = 10_000

// Limits of a table, which is held in memory.
const (
	maxTableBytes = 16 << 20 // maximum size of the cells in FormatTable
	maxCell       = 100      // maximum characters of a cell if there are several columns
)

// format is how ClickHouse formats an answer, and how it is rendered.
type format struct {
	clickhouse string
	settings   map[string]string
	render     func(*answer) (io.ReadCloser, error) // nil: passed through unchanged
}

// formats are the supported output formats. The settings make ClickHouse's output portable: ISO
// times, and numbers as JSON numbers.
var formats = map[string]format{
	FormatTable: {
		clickhouse: "JSONCompactStringsEachRowWithNamesAndTypes", render: renderTable,
		settings: with(jsonSettings, map[string]string{
			"describe_compact_output": "1",
			// One more row shows that the output is incomplete.
			"limit": strconv.Itoa(MaxTableRows + 1),
		}),
	},
	FormatJSON: {clickhouse: "JSONEachRow", settings: with(jsonSettings, map[string]string{
		"date_time_output_format": "iso",
	})},
	FormatParquet: {clickhouse: "Parquet", settings: map[string]string{
		"output_format_parquet_string_as_string":   "1",
		"output_format_parquet_datetime_as_uint32": "0",
	}},
	FormatCSV: {clickhouse: "CSVWithNames", settings: map[string]string{
		"date_time_output_format": "iso", "format_csv_null_representation": "",
	}},
}

// jsonSettings make ClickHouse write plain JSON numbers and valid UTF-8.
var jsonSettings = map[string]string{
	"output_format_json_quote_64bit_integers":   "0",
	"output_format_json_quote_decimals":         "0",
	"output_format_json_quote_denormals":        "0",
	"output_format_json_escape_forward_slashes": "0",
	"output_format_json_validate_utf8":          "1",
}

// with returns the union of two sets of settings.
func with(base, more map[string]string) map[string]string {
	m := maps.Clone(base)
	maps.Copy(m, more)
	return m
}

// numeric matches ClickHouse's names of numeric types, whose columns are right-aligned.
var numeric = regexp.MustCompile(`^(?:Nullable\(|LowCardinality\()*(?:U?Int|Float|BFloat|Decimal)`)

// renderTable reads the whole answer before it renders anything, so that a query that fails leaves
// no partial table.
func renderTable(a *answer) (_ io.ReadCloser, err error) {
	defer func() { err = errors.Join(err, a.Close()) }()
	lines := bufio.NewReaderSize(a, 64<<10)
	var names, types []string
	for _, head := range []*[]string{&names, &types} {
		if err := readRow(lines, head); errors.Is(err, io.EOF) { // a statement without an answer
			return io.NopCloser(new(bytes.Buffer)), nil
		} else if err != nil {
			return nil, err
		}
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	header, columns := make(table.Row, len(names)), make([]table.ColumnConfig, len(names))
	for i := range names {
		header[i] = printable(names[i], 0)
		columns[i] = table.ColumnConfig{Number: i + 1}
		if numeric.MatchString(types[i]) {
			columns[i].Align, columns[i].AlignHeader = text.AlignRight, text.AlignRight
		}
	}
	t.AppendHeader(header)
	t.SetColumnConfigs(columns)
	longest := maxCell
	if len(names) == 1 {
		longest = 0
	}
	count, size, more := 0, 0, false
	for {
		var values []string
		err := readRow(lines, &values)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if more = count == MaxTableRows || size > maxTableBytes; more {
			break
		}
		row := make(table.Row, len(values))
		for i, v := range values {
			cell := printable(v, longest)
			row[i], size = cell, size+len(cell)
		}
		t.AppendRow(row)
		count++
	}
	out := bytes.NewBufferString(t.Render())
	switch {
	case more:
		fmt.Fprintf(out, "\nthe first %d rows; use json or csv for all of them\n", count)
	case count == 1:
		out.WriteString("\n1 row\n")
	default:
		fmt.Fprintf(out, "\n%d rows\n", count)
	}
	return io.NopCloser(out), nil
}

// readRow reads one line of JSON values.
func readRow(r *bufio.Reader, row *[]string) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, row); err != nil {
		return &QueryError{
			Message: "the table output does not support FORMAT: omit it, or choose json or csv output", cause: err,
		}
	}
	return nil
}

// printable returns s on one line, with control characters escaped so that a value cannot control
// the terminal. longest is the maximum number of characters; 0 means no limit.
func printable(s string, longest int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; longest > 0 && n > longest {
			b.WriteRune('…')
			break
		}
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}
