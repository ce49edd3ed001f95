package sql

import "strings"

// qualify replaces Namespace with the snapshot's database where it is used as a database: before a
// dot, or after FROM or IN. ClickHouse has no aliases for databases, and every snapshot has its
// own. Tables of other namespaces are in the same database under their full names. Strings,
// comments and parts of longer names are left unchanged.
func qualify(query, to string, tables []string) string {
	var out strings.Builder
	var last token // the previous token other than space
	copied := 0    // end of the part of the query that is in out
	for t, ok := next(query, 0); ok; t, ok = next(query, t.end) {
		if t.kind == space {
			continue
		}
		// Tables of other namespaces, whose names have dots.
		for _, name := range tables {
			if end, ok := t.begins(query, name); ok && end > t.end && last.text(query) != "." {
				out.WriteString(query[copied:t.start])
				out.WriteString(to + "." + quoteName(name))
				copied, t.end = end, end
			}
		}
		if t.names(query, Namespace) && last.text(query) != "." {
			follow := significant(query, t.end)
			word := strings.ToLower(last.text(query))
			if follow.text(query) == "." || word == "from" || word == "in" {
				out.WriteString(query[copied:t.start])
				out.WriteString(to)
				copied = t.end
			}
		}
		last = t
	}
	out.WriteString(query[copied:])
	return out.String()
}

// mentions reports whether a query may read a table: whether its name occurs as an identifier.
func mentions(query, table string) bool {
	for t, ok := next(query, 0); ok; t, ok = next(query, t.end) {
		if _, is := t.begins(query, table); is {
			return true
		}
	}
	return false
}

// begins reports whether t starts the identifier name, whose parts may be separate tokens, and
// returns the end of its last part.
func (t token) begins(query, name string) (end int, ok bool) {
	if t.names(query, name) {
		return t.end, true
	}
	for i, part := range strings.Split(name, ".") {
		if i > 0 {
			dot := significant(query, t.end)
			if dot.text(query) != "." {
				return 0, false
			}
			t = significant(query, dot.end)
		}
		if !t.names(query, part) {
			return 0, false
		}
	}
	return t.end, true
}

// firstWord returns the first word of the statement in lower case.
func firstWord(query string) string {
	return strings.ToLower(significant(query, 0).text(query))
}

// significant returns the first token from at on that is not space.
func significant(query string, at int) token {
	t, ok := next(query, at)
	for ok && t.kind == space {
		t, ok = next(query, t.end)
	}
	return t
}

// tokenKind classifies tokens as far as this package needs it.
type tokenKind int

const (
	other   tokenKind = iota // any other single byte
	space                    // includes comments
	word                     // keyword, bare name or number
	quoted                   // a name in double quotes or backticks
	literal                  // string
)

// token is a range of bytes in the query.
type token struct {
	kind       tokenKind
	start, end int
}

// text returns the bytes of the token.
func (t token) text(query string) string { return query[t.start:t.end] }

// names reports whether t is the identifier s.
func (t token) names(query, s string) bool {
	switch t.kind {
	case word:
		return t.text(query) == s
	case quoted:
		return t.end-t.start > 2 && query[t.start+1:t.end-1] == s
	}
	return false
}

// next returns the token at a position, following ClickHouse's lexer. Unterminated tokens extend to
// the end.
func next(q string, at int) (t token, ok bool) {
	if at >= len(q) {
		return token{start: len(q), end: len(q)}, false
	}
	rest := q[at:]
	t = token{start: at, end: at + 1}
	switch c := q[at]; {
	case isSpace(c):
		t.kind = space
	case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "//"),
		strings.HasPrefix(rest, "# "), strings.HasPrefix(rest, "#!"):
		t.kind, t.end = space, at+untilAfter(rest, "\n")
	case strings.HasPrefix(rest, "/*"):
		t.kind, t.end = space, at+comment(rest)
	case c == '\'':
		t.kind, t.end = literal, at+closing(rest)
	case c == '"' || c == '`':
		t.kind, t.end = quoted, at+closing(rest)
	case c == '$' && heredoc(rest) > 0:
		t.kind, t.end = literal, at+heredoc(rest)
	case isWord(c):
		t.kind = word
		for t.end < len(q) && isWord(q[t.end]) {
			t.end++
		}
	}
	return t, true
}

// closing returns the position after the closing quote of s, which begins with the opening one. A
// doubled quote, or one after a backslash, does not close it.
func closing(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] != s[0]:
		case i+1 < len(s) && s[i+1] == s[0]:
			i++
		default:
			return i + 1
		}
	}
	return len(s)
}

// comment returns the length of a comment. Comments can be nested.
func comment(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

// heredoc returns the length of $tag$…$tag$, or 0.
func heredoc(s string) int {
	i := strings.IndexByte(s[1:], '$')
	if i < 0 {
		return 0
	}
	tag := s[:i+2]
	end := strings.Index(s[len(tag):], tag)
	if end < 0 {
		return 0
	}
	return end + 2*len(tag)
}

// untilAfter returns the position after the first occurrence of end, or the length of s.
func untilAfter(s, end string) int {
	if i := strings.Index(s, end); i >= 0 {
		return i + len(end)
	}
	return len(s)
}

// isSpace reports whether a byte is ASCII white space.
func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// isWord reports whether a byte may be part of a bare name, a keyword or a number.
func isWord(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// quote returns s as a string literal, and quoteName as a quoted identifier.
func quote(s string) string     { return "'" + escapes.Replace(s) + "'" }
func quoteName(s string) string { return "`" + escapes.Replace(s) + "`" }

// escapes escapes text for both kinds of quotes.
var escapes = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "`", "\\`")
