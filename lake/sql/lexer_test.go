package sql

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The namespace is replaced only where it is a database.
func TestQualify(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"SELECT * FROM millrace.order_lines":                            "SELECT * FROM DB.order_lines",
		"SELECT * FROM `millrace`.order_lines, \"millrace\" . `x`":      "SELECT * FROM DB.order_lines, DB . `x`",
		"SELECT millrace.order_lines.sku FROM millrace/**/.order_lines": "SELECT DB.order_lines.sku FROM DB/**/.order_lines",
		"SHOW TABLES FROM millrace":                                     "SHOW TABLES FROM DB",
		"show tables in millrace;":                                      "show tables in DB;",
		"SELECT 'millrace.x', $$millrace.y$$, $a$ millrace.$ $a$":       "SELECT 'millrace.x', $$millrace.y$$, $a$ millrace.$ $a$",
		"SELECT 1 -- millrace.x\n, millrace.x":                          "SELECT 1 -- millrace.x\n, DB.x",
		"SELECT 1 # millrace.x\n, millrace.x":                           "SELECT 1 # millrace.x\n, DB.x",
		"SELECT 1 /* /* */ millrace.x */, millrace.x":                   "SELECT 1 /* /* */ millrace.x */, DB.x",
		`SELECT 'a\'', 'b''millrace.x', millrace.x`:                     `SELECT 'a\'', 'b''millrace.x', DB.x`,
		"SELECT mymillrace.x, millrace2.x, t.millrace.x, Millrace.x":    "SELECT mymillrace.x, millrace2.x, t.millrace.x, Millrace.x",
		"SELECT 1 AS millrace":                                          "SELECT 1 AS millrace",
		"SELECT 'open millrace.x":                                       "SELECT 'open millrace.x",
		"SELECT `open millrace.x":                                       "SELECT `open millrace.x",
		"SELECT 1 /* millrace.x":                                        "SELECT 1 /* millrace.x",
		"millrace":                                                      "millrace",
		"":                                                              "",
	} {
		if got := qualify(query, "DB", nil); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}

// Tables of other namespaces are found under their full names.
func TestQualifyOtherNamespaces(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"SELECT * FROM web.clicks":                                 "SELECT * FROM DB.`web.clicks`",
		"SELECT web.clicks.id FROM `web` . \"clicks\", web.clicks": "SELECT DB.`web.clicks`.id FROM DB.`web.clicks`, DB.`web.clicks`",
		"DESCRIBE web/**/.clicks":                                  "DESCRIBE DB.`web.clicks`",
		"SELECT * FROM `web.clicks`":                               "SELECT * FROM `web.clicks`", // found in the database that the query runs in
		"SELECT * FROM a.b.c JOIN millrace.orders":                 "SELECT * FROM DB.`a.b.c` JOIN DB.orders",
		"SELECT x.web.clicks, 'web.clicks', web . clicks2, web --": "SELECT x.web.clicks, 'web.clicks', web . clicks2, web --",
	} {
		if got := qualify(query, "DB", []string{"web.clicks", "a.b.c"}); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}

// A table is mentioned by an identifier, but not by a string or a comment.
func TestMentions(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]bool{
		"SELECT * FROM web.clicks": true, "SELECT * FROM `web.clicks`": true, `SELECT * FROM "web"."clicks"`: true, "SELECT * FROM web . clicks w": true,
		"SELECT * FROM clicks": false, "SELECT * FROM web": false, "SELECT 'web.clicks'": false, "SELECT * FROM web.": false, "": false,
	} {
		if got := mentions(query, "web.clicks"); got != want {
			t.Errorf("%q: %v", query, got)
		}
	}
	if !mentions("SELECT 1 FROM order_lines", "order_lines") {
		t.Error("a plain name is not found")
	}
}

// Comments and spaces before the first word are skipped.
func TestFirstWord(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"SELECT 1": "select", " -- no\n /* no */ EXPLAIN SELECT 1": "explain", "(SELECT 1)": "(", "": "",
	} {
		if got := firstWord(query); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}

// Tokens cover the query from the first byte to the last without gaps.
func FuzzLexer(f *testing.F) {
	f.Add("SELECT 'a\\'b''c' -- d\n, `e`.\"f\" /* /* g */ */ $h$i$h$ # j")
	f.Fuzz(func(t *testing.T, query string) {
		at := 0
		for tok, ok := next(query, 0); ok; tok, ok = next(query, tok.end) {
			if tok.start != at || tok.end <= tok.start || tok.end > len(query) {
				t.Fatalf("token %v after byte %d of %q", tok, at, query)
			}
			at = tok.end
		}
		if at != len(query) {
			t.Fatalf("the tokens end at byte %d of %q", at, query)
		}
		if got := qualify(query, "millrace", nil); strings.Count(query, `millrace"`)+strings.Count(query, "millrace`") == 0 && got != query {
			t.Errorf("%q became %q", query, got)
		}
	})
}

// Any value is one token after quoting.
func TestQuote(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		for _, q := range []string{quote(s), quoteName(s)} {
			if tok, ok := next(q+" millrace.x", 0); !ok || tok.end != len(q) {
				t.Fatalf("%q ends after %d bytes", q, tok.end)
			}
		}
	})
}

// Control characters are escaped, and long values truncated.
func TestPrintable(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"plain ü 漢": "plain ü 漢", "two\nlines\t": `two\nlines\t`, "\x1b[31mred": `\x1b[31mred`,
		"\u202edesrever": `\u202edesrever`, "\xff": "�", "": "",
	} {
		if got := printable(s, 0); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
	if got := printable("0123456789", 4); got != "0123…" {
		t.Errorf("cut to %q", got)
	}
}

// Metadata files have to be below their table's location.
func TestPaths(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		table              Table
		location, metadata string // empty: refused
	}{
		"URLs":            {Table{Location: "file:///w/a%20b", MetadataLocation: "file:///w/a%20b/metadata/1.json"}, "/w/a%20b", "metadata/1.json"}, // as the engine reads those in the metadata
		"paths":           {Table{Location: "/w/a", MetadataLocation: "/w/a/metadata/1.json"}, "/w/a", "metadata/1.json"},
		"elsewhere":       {Table{Location: "/w/a", MetadataLocation: "/w/b/metadata/1.json"}, "", ""},
		"of another host": {Table{Location: "file://host/w/a", MetadataLocation: "file://host/w/a/metadata/1.json"}, "", ""},
		"on S3":           {Table{Location: "s3://w/a", MetadataLocation: "s3://w/a/metadata/1.json"}, "s3://w/a", "metadata/1.json"},
		"on S3, aside":    {Table{Location: "s3://w/a", MetadataLocation: "s3://w/ab/metadata/1.json"}, "", ""},
		"relative":        {Table{Location: "a", MetadataLocation: "a/metadata/1.json"}, "", ""},
	} {
		location, metadata, err := c.table.paths()
		if location != c.location || metadata != c.metadata || (err == nil) != (c.location != "") {
			t.Errorf("%s: %q, %q, %v", name, location, metadata, err)
		}
	}
}

// The name of a database depends on the states of the tables, not on their order.
func TestDatabaseOf(t *testing.T) {
	t.Parallel()
	a, b := Table{Name: "a", Location: "/a", MetadataLocation: "/a/1"}, Table{Name: "b", Location: "/b", MetadataLocation: "/b/1"}
	later := b
	later.MetadataLocation = "/b/2"
	if contentOf([]Table{a, b}, S3{}) != contentOf([]Table{b, a}, S3{}) {
		t.Error("the order matters")
	}
	if contentOf([]Table{a, b}, S3{}) == contentOf([]Table{a, later}, S3{}) {
		t.Error("a later state has the same name")
	}
}
