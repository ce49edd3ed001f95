package engine

import (
	"bytes"
	"regexp"
	"strings"
)

// chdb streams an answer as a row of small documents, each complete in its format. Joined they are
// one answer in formats that have neither head nor tail; in formats with a head, the head of every
// document but the first is cut off. In all other formats the answer is not streamed.

// headless formats can be joined as they are.
var headless = map[string]bool{
	"tsv": true, "tabseparated": true, "tsvraw": true, "tabseparatedraw": true, "raw": true, "csv": true,
	"jsoneachrow": true, "jsonlines": true, "ndjson": true, "jsonstringseachrow": true,
	"jsoncompacteachrow": true, "jsoncompactstringseachrow": true,
	"native": true, "rowbinary": true, "tskv": true, "null": true,
}

// headLines says how many lines, or in CSV records, the head has.
var headLines = map[string]int{
	"tsvwithnames": 1, "tabseparatedwithnames": 1,
	"tsvwithnamesandtypes": 2, "tabseparatedwithnamesandtypes": 2,
	"csvwithnames": 1, "csvwithnamesandtypes": 2,
	"jsoncompacteachrowwithnames": 1, "jsoncompacteachrowwithnamesandtypes": 2,
	"jsoncompactstringseachrowwithnames": 1, "jsoncompactstringseachrowwithnamesandtypes": 2,
}

// streamable reports whether an answer in format can be read piece by piece, and if so, how to cut
// the head from a piece.
func streamable(format string) (cut func([]byte) []byte, ok bool) {
	format = strings.ToLower(format)
	if headless[format] {
		return func(piece []byte) []byte { return piece }, true
	}
	lines, ok := headLines[format]
	if !ok {
		return nil, false
	}
	if strings.HasPrefix(format, "csv") {
		return func(piece []byte) []byte { return cutRecords(piece, lines) }, true
	}
	return func(piece []byte) []byte { return cutLines(piece, lines) }, true
}

func cutLines(b []byte, n int) []byte {
	for range n {
		_, b, _ = bytes.Cut(b, []byte{'\n'})
	}
	return b
}

// cutRecords cuts n CSV records, whose quoted fields may hold line ends.
func cutRecords(b []byte, n int) []byte {
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

// A statement that may name its own format is not streamed, for want of knowing which.
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
