// Package location says where the files of Iceberg tables are, and is the one file system of tables
// on local disk.
//
// A location is read by many programs, and some of them decode it as a URL while others take it as
// it is. So a location that is made here has only characters that mean the same to both: Table
// makes one of a table's name, and no data file's name has anything of a record in it. Local takes
// locations as they are, as PyIceberg, DuckDB and Java do; iceberg-go's own file system decodes
// them. Fence keeps whoever reads or writes a table in the table's own folder.
package location

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// Table returns where a new table's files are to be, below a warehouse. A name whose characters all
// stand for themselves is its own folder's; any other becomes one that is as good as unique. The
// same name always gives the same location.
func Table(warehouse string, name []string) string {
	namespace, last := strings.Join(name[:len(name)-1], "/"), name[len(name)-1]
	folder := namespace + ".db/" + last
	plain := len(last) <= maxPart && !strings.Contains(last, "/") && !strings.ContainsRune(last, ':')
	for _, part := range name {
		plain = plain && Plain(part) == nil && len(part) <= maxPart && strings.Trim(part, ".") != "" && !strings.Contains(part, "/")
	}
	if plain {
		return warehouse + "/" + folder
	}
	sum := sha256.Sum256([]byte(strings.Join(name, "\x00")))
	return warehouse + "/" + replaced(strings.Join(name[:len(name)-1], ".")) + ".db/" + replaced(last) + "-" + hex.EncodeToString(sum[:6])
}

const (
	maxPart = 100 // bytes of a name that is a folder's
	maxKept = 40  // bytes of a name that is kept for people in another
)

// replaced returns a name with a line in place of each character that may need escaping.
func replaced(name string) string {
	name = strings.Map(func(r rune) rune {
		if strings.ContainsRune(letters+"-", r) {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), maxKept)]
}

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	// What means the same whether or not it is decoded: what RFC 3986 calls unreserved, and what it
	// lets a path have besides that no reader takes for a pattern.
	plainSet = letters + "-.~@+,=:"
)

// Plain returns an error that names the first character of a path that may need escaping.
func Plain(path string) error {
	for _, r := range path {
		if r != '/' && !strings.ContainsRune(plainSet, r) {
			return fmt.Errorf("readers of Iceberg tables do not agree on the character %q in a location: use letters, digits and -_.~ only", r)
		}
	}
	return nil
}

// Inside reports whether a file is below a location, however it is read: as it is written, and
// decoded.
func Inside(base, name string) bool {
	if climbs(name) || climbs(decoded(name)) {
		return false
	}
	base, name = strings.TrimRight(Canonical(base), "/")+"/", Canonical(name)
	if strings.HasPrefix(name, base) {
		return true
	}
	// iceberg-go escapes what a table's location needs escaped.
	return base != decoded(name) && strings.HasPrefix(decoded(name), base)
}

// climbs reports whether a name has a part that leads up, or stays.
func climbs(name string) bool {
	for part := range strings.SplitSeq(strings.ReplaceAll(name, `\`, "/"), "/") {
		if part == ".." || part == "." {
			return true
		}
	}
	return strings.ContainsRune(name, 0)
}

// Canonical returns one spelling of a location on local disk; others have only one.
func Canonical(name string) string {
	if p, local := localPath(name); local {
		return "file://" + path.Clean("/"+strings.TrimLeft(p, "/"))
	}
	return name
}

// decoded returns what a program reads that takes a location for a URL.
func decoded(name string) string {
	if d, err := url.PathUnescape(name); err == nil {
		return d
	}
	return name
}

// localPath returns a location's path on local disk, as it is written: of file:///path, file:/path,
// or a path alone.
func localPath(name string) (string, bool) {
	rest, isFile := strings.CutPrefix(name, "file:")
	if !isFile {
		return name, !strings.Contains(name, "://")
	}
	if authority, found := strings.CutPrefix(rest, "//"); found {
		host, p, _ := strings.Cut(authority, "/")
		return "/" + p, host == "" || host == "localhost"
	}
	return rest, true
}
