package restcatalog

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

// separator separates the parts of a namespace in a path, as the specification defines.
const separator = "\x1f"

// namespaceOf returns the namespace in a request's path.
func namespaceOf(r *http.Request) table.Identifier {
	return strings.Split(r.PathValue("namespace"), separator)
}

// maxNameBytes is the maximum length of a name. It fits the SQL catalog's columns and, with the
// suffix of a location, a folder name.
const maxNameBytes = 200

// checkName refuses names that cannot be stored or used in a path. It applies to new names only.
func checkName(field string, parts ...string) error {
	if len(parts) == 0 {
		return badRequest("%s: missing", field)
	}
	for _, p := range parts {
		if len(p) > maxNameBytes {
			return badRequest("%s: has %d bytes; the maximum is %d bytes", field, len(p), maxNameBytes)
		}
		if p == "" || p == "." || p == ".." || strings.Contains(p, "/") ||
			strings.ContainsFunc(p, unicode.IsControl) || strings.Contains(p, encodedNamespace) {
			return badRequest("%s: %q is not a valid name; "+
				`names must not be empty, "." or "..", or contain slashes or control characters`, field, p)
		}
	}
	return nil
}

// namespaceAnswer is a namespace in request and response bodies.
type namespaceAnswer struct {
	Namespace  table.Identifier   `json:"namespace"`
	Properties iceberg.Properties `json:"properties"`
}

// listNamespaces lists the direct children of a namespace, or the top-level namespaces.
func (s *Server) listNamespaces(w http.ResponseWriter, r *http.Request) error {
	var parent table.Identifier
	if p := r.URL.Query().Get("parent"); p != "" {
		parent = strings.Split(p, separator)
	}
	all, err := s.config.Catalog.ListNamespaces(r.Context(), parent) // of any depth
	if err != nil {
		return err
	}
	// The catalog lists namespaces of all depths. Reduce them to direct children, each once.
	// Joined names serve as keys, because identifiers cannot be.
	children := map[string]table.Identifier{}
	caller := callerOf(r)
	for _, n := range all {
		if len(n) > len(parent) && caller.sees(n) {
			child := n[:len(parent)+1]
			children[strings.Join(child, separator)] = child
		}
	}
	keys, next, err := page(r, slices.Collect(maps.Keys(children)))
	if err != nil {
		return err
	}
	answer := struct {
		Namespaces []table.Identifier `json:"namespaces"`
		Next       string             `json:"next-page-token,omitempty"`
	}{make([]table.Identifier, 0, len(keys)), next}
	// The keys are joined names. The answer has the parts.
	for _, k := range keys {
		answer.Namespaces = append(answer.Namespaces, children[k])
	}
	return reply(w, answer)
}

// maxPage is the maximum number of entries of a page.
const maxPage = 1000

// tokenPrefix marks page tokens before encoding, so that arbitrary text is not accepted as one.
const tokenPrefix = "after:"

// page returns the requested page of a list in sorted order, and the token for the next page. The
// token contains the last key of the page, so concurrent changes neither repeat nor hide other
// entries.
func page(r *http.Request, keys []string) (part []string, next string, err error) {
	// Sorted, so that a token marks a position independent of other entries.
	sort.Strings(keys)
	q := r.URL.Query()
	if !q.Has("pageToken") && !q.Has("pageSize") { // the client does not use pages
		return keys, "", nil
	}
	// A client may ask for smaller pages, but not for larger ones.
	size := maxPage
	if text := q.Get("pageSize"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, "", badRequest("pageSize: %q is not a positive number", text)
		}
		size = min(n, maxPage)
	}
	if token := q.Get("pageToken"); token != "" {
		text, err := base64.RawURLEncoding.DecodeString(token)
		after, ours := strings.CutPrefix(string(text), tokenPrefix)
		if err != nil || !ours {
			return nil, "", badRequest("pageToken: %q was not issued by this catalog", token)
		}
		// The last key may have been removed since. Then its successor comes next.
		at, found := slices.BinarySearch(keys, after)
		if found {
			at++
		}
		keys = keys[at:]
	}
	if len(keys) <= size {
		return keys, "", nil
	}
	return keys[:size], base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + keys[size-1])), nil
}

// createNamespace creates a namespace.
func (s *Server) createNamespace(w http.ResponseWriter, r *http.Request) error {
	var n namespaceAnswer
	if err := read(r, &n); err != nil {
		return err
	}
	if err := checkName("namespace", n.Namespace...); err != nil {
		return err
	}
	// The SQL catalog stores all parts in one column.
	if key := namespaceKey(n.Namespace); len(key) > maxNameBytes {
		return badRequest("namespace: all parts together have %d bytes; the maximum is %d bytes",
			len(key), maxNameBytes)
	}
	if err := s.checkNamespace(n.Properties); err != nil {
		return err
	}
	if err := s.config.Catalog.CreateNamespace(r.Context(), n.Namespace, n.Properties); err != nil {
		return err
	}
	if n.Properties == nil {
		n.Properties = iceberg.Properties{}
	}
	return reply(w, n)
}

// reservedPrefix is the prefix of properties that belong to landers, in tables and namespaces.
const reservedPrefix = "millrace."

// checkNamespace refuses properties that place tables outside of the warehouse, and those in which
// landers record faults.
func (s *Server) checkNamespace(p iceberg.Properties) error {
	for key := range p {
		if strings.HasPrefix(key, reservedPrefix) {
			return forbidden("properties: %s: properties that begin with %s are reserved for landers",
				key, reservedPrefix)
		}
	}
	if l, ok := p["location"]; ok {
		_, err := s.warehouse.checkNew("location", l)
		return err
	}
	return nil
}

// loadNamespace serves a namespace's properties.
func (s *Server) loadNamespace(w http.ResponseWriter, r *http.Request) error {
	n := namespaceOf(r)
	if err := requireVisible(r, n); err != nil {
		return err
	}
	p, err := s.config.Catalog.LoadNamespaceProperties(r.Context(), n)
	if err != nil {
		return err
	}
	return reply(w, namespaceAnswer{n, p})
}

// namespaceExists serves HEAD of a namespace.
func (s *Server) namespaceExists(w http.ResponseWriter, r *http.Request) error {
	if err := requireVisible(r, namespaceOf(r)); err != nil {
		return err
	}
	exists, err := s.config.Catalog.CheckNamespaceExists(r.Context(), namespaceOf(r))
	if err == nil && !exists {
		err = catalog.ErrNoSuchNamespace
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// dropNamespace drops a namespace, which must be empty. iceberg-go's catalog only checks for
// tables, so nested namespaces are checked here.
func (s *Server) dropNamespace(w http.ResponseWriter, r *http.Request) error {
	n := namespaceOf(r)
	// ListNamespaces includes n itself.
	below, err := s.config.Catalog.ListNamespaces(r.Context(), n)
	if err != nil {
		return err
	}
	for _, b := range below {
		if len(b) > len(n) {
			return &apiError{
				status: http.StatusConflict, kind: "NamespaceNotEmptyException",
				message: "namespace is not empty: it contains namespace " + strings.Join(b, "."),
			}
		}
	}
	if err := s.config.Catalog.DropNamespace(r.Context(), n); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// updateNamespace sets and removes properties of a namespace.
func (s *Server) updateNamespace(w http.ResponseWriter, r *http.Request) error {
	var change struct {
		Removals []string           `json:"removals"`
		Updates  iceberg.Properties `json:"updates"`
	}
	if err := read(r, &change); err != nil {
		return err
	}
	// The specification requires an error, since the order of the two is undefined.
	for _, key := range change.Removals {
		if _, both := change.Updates[key]; both {
			return &apiError{
				status: http.StatusUnprocessableEntity, kind: "UnprocessableEntityException",
				message: "removals, updates: " + key + " is in both",
			}
		}
	}
	if err := s.checkNamespace(change.Updates); err != nil {
		return err
	}
	summary, err := s.config.Catalog.UpdateNamespaceProperties(
		r.Context(), namespaceOf(r), change.Removals, change.Updates)
	if err != nil {
		return err
	}
	for _, list := range []*[]string{&summary.Removed, &summary.Updated, &summary.Missing} {
		if *list == nil {
			*list = []string{} // clients expect lists, not null
		}
	}
	return reply(w, summary)
}

// listViews returns an empty list: this catalog has no views.
func (s *Server) listViews(w http.ResponseWriter, r *http.Request) error {
	exists, err := s.config.Catalog.CheckNamespaceExists(r.Context(), namespaceOf(r))
	if err == nil && !exists {
		err = catalog.ErrNoSuchNamespace
	}
	if err != nil {
		return err
	}
	return reply(w, map[string][]string{"identifiers": {}})
}

// noView answers requests for one view.
func noView(_ http.ResponseWriter, r *http.Request) error {
	return &apiError{
		status: http.StatusNotFound, kind: "NoSuchViewException",
		message: "view does not exist: " + r.PathValue("view") + "; this catalog has no views",
	}
}

// noViews answers requests to create, register or rename views.
func noViews(http.ResponseWriter, *http.Request) error {
	return &apiError{
		status: http.StatusNotAcceptable, kind: "UnsupportedOperationException",
		message: "this catalog has no views",
	}
}
