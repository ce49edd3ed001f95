// Package location defines where the files of Iceberg tables are, and provides the file system for
// tables on local disk.
//
// Many programs read a location. Some decode it as a URL, and others use it as written. So new
// locations only contain characters that mean the same to both: Table derives one from a table's
// name, and names of data files contain no values of records. Local uses locations as written, as
// PyIceberg, DuckDB and Java do; iceberg-go's own file system decodes them.
//
// Fence limits readers and writers of a table to its own folders. A path counts as inside only if
// it is inside both as written and decoded (Inside).
//
// The package also adds bounds to manifest lists that iceberg-go omits, see manifestlist.go.
package location

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// Table returns the location of a new table below a warehouse. If the name only has plain
// characters, the folder has the same name. Otherwise it gets a practically unique one, with a hash
// of the name. The same name always has the same location.
func Table(warehouse string, name []string) string {
	namespace, last := strings.Join(name[:len(name)-1], "/"), name[len(name)-1]
	folder := namespace + ".db/" + last
	plain := len(last) <= maxPart && !strings.Contains(last, "/") && !strings.ContainsRune(last, ':')
	for _, part := range name {
		plain = plain && Plain(part) == nil && len(part) <= maxPart &&
			strings.Trim(part, ".") != "" && !strings.Contains(part, "/")
	}
	if plain {
		return warehouse + "/" + folder
	}
	// Two names that differ only in replaced characters still have different folders.
	sum := sha256.Sum256([]byte(strings.Join(name, "\x00")))
	namespace = readable(strings.Join(name[:len(name)-1], "."))
	return warehouse + "/" + namespace + ".db/" + readable(last) + "-" + hex.EncodeToString(sum[:6])
}

// Limits of the names of folders.
const (
	maxPart = 100 // maximum bytes of a part of a name that is used as it is
	maxKept = 40  // bytes of another name that are kept for readability
)

// readable returns a name with underscores in place of characters that may need escaping.
func readable(name string) string {
	name = strings.Map(func(r rune) rune {
		if strings.ContainsRune(letters+"-", r) {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), maxKept)]
}

// Sets of characters that locations may contain.
const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	// plainSet are the characters that mean the same whether or not they are decoded: those that
	// RFC 3986 calls unreserved, and those that it allows in a path and no reader interprets as a
	// pattern.
	plainSet = letters + "-.~@+,=:"
)

// Plain returns an error that names the first character of a path that may need escaping.
func Plain(path string) error {
	for _, r := range path {
		if r != '/' && !strings.ContainsRune(plainSet, r) {
			return fmt.Errorf("readers of Iceberg tables disagree on the character %q in a location; "+
				"use only letters, digits and -_.~", r)
		}
	}
	return nil
}

// Inside reports whether a file is below a location, both as written and decoded.
func Inside(base, name string) bool {
	if climbs(name) || climbs(decoded(name)) {
		return false
	}
	base, name = strings.TrimRight(Canonical(base), "/")+"/", Canonical(name)
	if strings.HasPrefix(name, base) {
		return true
	}
	// iceberg-go escapes characters of a table's location if necessary.
	return base != decoded(name) && strings.HasPrefix(decoded(name), base)
}

// climbs reports whether a name has a "." or ".." part or a NUL byte.
func climbs(name string) bool {
	for part := range strings.SplitSeq(strings.ReplaceAll(name, `\`, "/"), "/") {
		if part == ".." || part == "." {
			return true
		}
	}
	return strings.ContainsRune(name, 0)
}

// Canonical returns a unique spelling of a location on local disk. Other locations are returned
// unchanged.
func Canonical(name string) string {
	if p, local := localPath(name); local {
		return "file://" + path.Clean("/"+strings.TrimLeft(p, "/"))
	}
	return name
}

// decoded returns the name as seen by programs that treat locations as URLs.
func decoded(name string) string {
	if d, err := url.PathUnescape(name); err == nil {
		return d
	}
	return name
}

// localPath returns the path of a location on local disk, without decoding it. It accepts
// file:///path, file:/path, and a bare path.
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
