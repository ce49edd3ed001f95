package engine

import (
	"bytes"
	"regexp"
	"strings"
)

// chdb streams an answer as a sequence of small documents, each complete in its format. In formats
// without head and tail, they can be concatenated. In formats with a head, it is removed from every
// document but the first. In all other formats the answer is not streamed.

// headless formats can be concatenated.
var headless = map[string]bool{
	"tsv": true, "tabseparated": true, "tsvraw": true, "tabseparatedraw": true, "raw": true, "csv": true,
	"jsoneachrow": true, "jsonlines": true, "ndjson": true, "jsonstringseachrow": true,
	"jsoncompacteachrow": true, "jsoncompactstringseachrow": true,
	"native": true, "rowbinary": true, "tskv": true, "null": true,
}

// headLines is the number of lines, or CSV records, of a format's head.
var headLines = map[string]int{
	"tsvwithnames": 1, "tabseparatedwithnames": 1,
	"tsvwithnamesandtypes": 2, "tabseparatedwithnamesandtypes": 2,
	"csvwithnames": 1, "csvwithnamesandtypes": 2,
	"jsoncompacteachrowwithnames": 1, "jsoncompacteachrowwithnamesandtypes": 2,
	"jsoncompactstringseachrowwithnames": 1, "jsoncompactstringseachrowwithnamesandtypes": 2,
}

// streamable reports whether an answer in format can be streamed, and returns a function that
// removes the head of a piece.
func streamable(format string) (cut func([]byte) []byte, ok bool) {
	// Format names are case-insensitive in the HTTP interface.
	format = strings.ToLower(format)
	if headless[format] {
		return func(piece []byte) []byte { return piece }, true
	}
	// Unknown formats may have a tail, such as the end of a JSON array.
	lines, ok := headLines[format]
	if !ok {
		return nil, false
	}
	if strings.HasPrefix(format, "csv") {
		return func(piece []byte) []byte { return cutRecords(piece, lines) }, true
	}
	return func(piece []byte) []byte { return cutLines(piece, lines) }, true
}

// cutLines removes the first n lines.
func cutLines(b []byte, n int) []byte {
	for range n {
		_, b, _ = bytes.Cut(b, []byte{'\n'})
	}
	return b
}

// cutRecords removes the first n CSV records, whose quoted fields may contain line breaks.
func cutRecords(b []byte, n int) []byte {
	// A doubled quote within a field toggles twice, which has no effect.
	quoted := false
	for i, c := range b {
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\n' && !quoted:
			if n--; n == 0 {
				return b[i+1:]
			}
		}
	}
	return nil
}

// mayNameFormat matches statements that may set their own format. They are not streamed, because
// the format is unknown.
var mayNameFormat = regexp.MustCompile(`(?i)\bformat\b`)

// contentType returns the media type of a format.
func contentType(format string) string {
	f := strings.ToLower(format)
	switch {
	case f == "json" || f == "jsoncompact" || f == "jsonstrings" || f == "jsoncolumns":
		return "application/json; charset=UTF-8"
	case strings.HasPrefix(f, "json") || f == "ndjson":
		return "application/x-ndjson; charset=UTF-8"
	case strings.HasPrefix(f, "csvwithnames"):
		return "text/csv; charset=UTF-8; header=present"
	case strings.HasPrefix(f, "csv"):
		return "text/csv; charset=UTF-8; header=absent"
	case strings.HasPrefix(f, "tsv") || strings.HasPrefix(f, "tabseparated"):
		return "text/tab-separated-values; charset=UTF-8"
	case f == "native" || f == "parquet" || strings.HasPrefix(f, "rowbinary") || strings.HasPrefix(f, "arrow"):
		return "application/octet-stream"
	}
	return "text/plain; charset=UTF-8"
}
