package restcatalog

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/lake/location"
)

// warehouse is the root of all tables.
type warehouse struct {
	url     string // without a trailing slash
	escaped string // the URL as iceberg-go writes it in file names
	bucket  bool
	storage Storage
}

// openWarehouse parses the warehouse's URL.
func openWarehouse(at string, storage Storage) (warehouse, error) {
	// Locations are compared with the URL followed by a slash.
	at = strings.TrimSuffix(at, "/")
	w := warehouse{url: at, bucket: strings.HasPrefix(at, "s3://"), storage: storage}
	if !w.bucket && !strings.HasPrefix(at, "file:///") {
		return w, fmt.Errorf("warehouse %q is neither file:///folder nor s3://bucket/folder", at)
	}
	u, err := url.Parse(at)
	if err != nil {
		return w, fmt.Errorf("warehouse: %w", err)
	}
	w.escaped = u.String()
	return w, nil
}

// check normalises a location in the warehouse, and returns an error for others. Without this
// check, a client could make the server write, and by a purge delete, files that do not belong to
// the lake.
func (w warehouse) check(field, location string) (string, error) {
	location = strings.TrimRight(location, "/")
	if !w.bucket { // other engines write file:/folder or a bare path
		path := strings.TrimPrefix(location, "file:")
		if strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
			location = "file://" + path
		}
	}
	// iceberg-go escapes characters of the warehouse's URL when it derives file names.
	rest, below := strings.CutPrefix(location, w.url+"/")
	if !below {
		rest, below = strings.CutPrefix(location, w.escaped+"/")
	}
	for part := range strings.SplitSeq(rest, "/") {
		// Escapes are refused as well: some readers of a URL decode them and others do not.
		below = below && part != "" && part != "." && part != ".." && !strings.ContainsAny(part, "%?#\\\x00")
	}
	if !below {
		return "", forbidden("%s: %s is outside of this catalog's warehouse, %s", field, location, w.url)
	}
	return location, nil
}

// checkNew is check for new locations. It also refuses names that would have to be escaped, because
// engines would disagree on them, and names that are too long.
func (w warehouse) checkNew(field, at string) (string, error) {
	at, err := w.check(field, at)
	if err != nil {
		return "", err
	}
	if err := location.Plain(strings.TrimPrefix(strings.TrimPrefix(at, w.url), w.escaped)); err != nil {
		return "", badRequest("%s: %s: %v", field, at, err)
	}
	if len(at) > maxLocationBytes {
		return "", badRequest("%s: has %d bytes; the maximum is %d bytes", field, len(at), maxLocationBytes)
	}
	for part := range strings.SplitSeq(at, "/") {
		if len(part) > maxPartBytes {
			return "", badRequest("%s: has a folder name of %d bytes; the maximum is %d bytes",
				field, len(part), maxPartBytes)
		}
	}
	return at, nil
}

// File systems limit the names of folders, and object stores those of objects, to which file names
// are added.
const (
	maxPartBytes     = 255
	maxLocationBytes = 700
)

// unsafe matches characters that are not used in folder names.
var unsafe = regexp.MustCompile(`[^\w.-]`)

// tableLocation returns the location of a new table: a folder that no other table has, even if an
// earlier table of the same name was renamed. So cleaning up one table never deletes another's
// files.
func (s *Server) tableLocation(ctx context.Context, ident table.Identifier, id uuid.UUID) (string, error) {
	// The namespace may have a location of its own.
	namespace, name := ident[:len(ident)-1], ident[len(ident)-1]
	props, err := s.config.Catalog.LoadNamespaceProperties(ctx, namespace)
	if err != nil {
		return "", err
	}
	// The default layout of Hive catalogs: NAMESPACE.db/TABLE.
	base := s.warehouse.url + "/" + unsafe.ReplaceAllString(strings.Join(namespace, "."), "_") + ".db"
	if own := props["location"]; own != "" {
		if base, err = s.warehouse.checkNew("location of the namespace", own); err != nil {
			return "", err
		}
	}
	return base + "/" + unsafe.ReplaceAllString(name, "_") + "-" + id.String()[:8], nil
}

// clientConfig returns the storage settings for clients.
func (w warehouse) clientConfig() map[string]string {
	p := map[string]string{}
	if !w.bucket {
		return p
	}
	if w.storage.Region != "" {
		// The property names of PyIceberg and of Java.
		p["s3.region"], p["client.region"] = w.storage.Region, w.storage.Region
	}
	if w.storage.Endpoint != "" {
		// The slash is necessary: ClickHouse cuts the endpoint off an address and interprets the
		// rest as bucket and path.
		p["s3.endpoint"], p["s3.path-style-access"] = strings.TrimRight(w.storage.Endpoint, "/")+"/", "true"
	}
	return p
}

// credential are storage settings with credentials for locations under a prefix.
type credential struct {
	Prefix string            `json:"prefix"`
	Config map[string]string `json:"config"`
}

// credentials returns the object store credentials for a caller. It returns none if clients must
// bring their own.
func (s *Server) credentials(r *http.Request) []credential {
	// The keys depend on the caller's rights, not on the table.
	keys := s.config.Access.keys(callerOf(r))
	if !s.warehouse.bucket || keys.empty() {
		return []credential{}
	}
	// Endpoint and region are needed along with the keys.
	c := s.warehouse.clientConfig()
	c["s3.access-key-id"], c["s3.secret-access-key"] = keys.AccessKey, keys.SecretKey
	return []credential{{s.warehouse.url + "/", c}}
}

// wantsCredentials reports whether a client requests vended credentials.
func wantsCredentials(r *http.Request) bool {
	for _, header := range r.Header.Values("X-Iceberg-Access-Delegation") {
		for way := range strings.SplitSeq(header, ",") {
			if strings.TrimSpace(way) == "vended-credentials" {
				return true
			}
		}
	}
	return false
}

// files returns the file system of a location in the warehouse.
func (s *Server) files(ctx context.Context, location string) (io.WriteFileIO, error) {
	// A file system is bound to its context, so each request opens its own.
	fs, err := io.LoadFS(ctx, s.config.Files, location)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", location, err)
	}
	writable, ok := fs.(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("file system of %s is read-only", location)
	}
	return fenced{writable, s.warehouse}, nil
}

// fenced is a file system that is limited to the warehouse, because a table's manifests can name
// any file. It cannot list folders, so a purge deletes only files that the table refers to, not
// everything at a location that a client chose.
type fenced struct {
	io.WriteFileIO
	warehouse warehouse
}

// Open refuses files outside of the warehouse.
func (f fenced) Open(name string) (io.File, error) {
	if !f.warehouse.has(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return f.WriteFileIO.Open(name)
}

// Remove refuses files outside of the warehouse.
func (f fenced) Remove(name string) error {
	if !f.warehouse.has(name) {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrPermission}
	}
	return f.WriteFileIO.Remove(name)
}

// has reports whether a file is in the warehouse in every interpretation of its name.
func (w warehouse) has(name string) bool { return location.Inside(w.url, name) }
