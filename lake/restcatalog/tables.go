package restcatalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
)

// identifier is a table's name in a request or response body.
type identifier struct {
	Namespace table.Identifier `json:"namespace"`
	Name      string           `json:"name"`
}

// full returns the namespace and the name.
func (i identifier) full() table.Identifier {
	return append(append(table.Identifier{}, i.Namespace...), i.Name)
}

// tableOf returns the table in a request's path.
func tableOf(r *http.Request) table.Identifier { return append(namespaceOf(r), r.PathValue("table")) }

// listTables lists the tables of a namespace that the caller may read.
func (s *Server) listTables(w http.ResponseWriter, r *http.Request) error {
	n, caller := namespaceOf(r), callerOf(r)
	if err := requireVisible(r, n); err != nil {
		return err
	}
	var names []string
	for ident, err := range s.config.Catalog.ListTables(r.Context(), n) {
		if err != nil {
			return err
		}
		if caller.rightOn(ident) >= Read {
			names = append(names, ident[len(ident)-1])
		}
	}
	names, next, err := page(r, names)
	if err != nil {
		return err
	}
	answer := struct {
		Identifiers []identifier `json:"identifiers"`
		Next        string       `json:"next-page-token,omitempty"`
	}{make([]identifier, 0, len(names)), next}
	for _, name := range names {
		answer.Identifiers = append(answer.Identifiers, identifier{n, name})
	}
	return reply(w, answer)
}

// replyTable sends a table and the way to access its files. file is empty for a staged table, which
// has no metadata file yet.
func (s *Server) replyTable(w http.ResponseWriter, r *http.Request, metadata any, file string) error {
	// The form of LoadTableResult in the specification.
	answer := struct {
		MetadataLocation string            `json:"metadata-location,omitempty"`
		Metadata         any               `json:"metadata"`
		Config           map[string]string `json:"config"`
		Credentials      []credential      `json:"storage-credentials,omitempty"`
	}{file, metadata, s.warehouse.clientConfig(), nil}
	if wantsCredentials(r) {
		answer.Credentials = s.credentials(r)
		for _, c := range answer.Credentials {
			answer.Config = c.Config // for clients that ignore storage-credentials
		}
	}
	return reply(w, answer)
}

// loadTable serves a table's metadata, with all snapshots or only those of branches and tags.
func (s *Server) loadTable(w http.ResponseWriter, r *http.Request) error {
	refs := false
	switch which := r.URL.Query().Get("snapshots"); which {
	case "", "all":
	case "refs":
		refs = true
	default:
		return badRequest("snapshots: %q is neither all nor refs", which)
	}
	t, err := s.config.Catalog.LoadTable(r.Context(), tableOf(r))
	if err != nil {
		return err
	}
	var metadata any = t.Metadata()
	if refs {
		if metadata, err = onlyReferenced(t.Metadata()); err != nil {
			return err
		}
	}
	return s.replyTable(w, r, metadata, t.MetadataLocation())
}

// onlyReferenced returns the metadata without snapshots that no branch or tag refers to.
func onlyReferenced(m table.Metadata) (map[string]json.RawMessage, error) {
	// Snapshots that a branch or tag points to, and the current one.
	keep := map[int64]bool{}
	for _, ref := range m.Refs() {
		keep[ref.SnapshotID] = true
	}
	if current := m.CurrentSnapshot(); current != nil {
		keep[current.SnapshotID] = true
	}
	snapshots := []table.Snapshot{}
	for _, snapshot := range m.Snapshots() {
		if keep[snapshot.SnapshotID] {
			snapshots = append(snapshots, snapshot)
		}
	}
	// Edit the JSON, because the metadata itself must not change.
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	if fields["snapshots"], err = json.Marshal(snapshots); err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return fields, nil
}

// tableExists serves HEAD of a table. It reads the catalog, but not the table's metadata.
func (s *Server) tableExists(w http.ResponseWriter, r *http.Request) error {
	exists, err := s.config.Catalog.CheckTableExists(r.Context(), tableOf(r))
	if err == nil && !exists {
		err = catalog.ErrNoSuchTable
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// createRequest is the body of a request to create a table. Spec and order refer to columns by the
// ids in Schema. The table's own ids may differ.
type createRequest struct {
	Name       string                        `json:"name"`
	Location   string                        `json:"location"`
	Schema     *iceberg.Schema               `json:"schema"`
	Spec       *iceberg.UnboundPartitionSpec `json:"partition-spec"`
	Order      *table.UnboundSortOrder       `json:"write-order"`
	Stage      bool                          `json:"stage-create"`
	Properties iceberg.Properties            `json:"properties"`
}

// createTable creates a table, or with stage-create only returns the metadata that it would have.
func (s *Server) createTable(w http.ResponseWriter, r *http.Request) error {
	var c createRequest
	if err := readGuarded(r, &c); err != nil {
		return err
	}
	ident := append(namespaceOf(r), c.Name)
	if err := requireOn(r, Write, ident); err != nil {
		return err
	}
	if err := checkName("name", c.Name); err != nil {
		return err
	}
	if c.Schema == nil {
		return badRequest("schema: missing")
	}
	ctx := r.Context()
	// Checked early for a better error. The swap checks it again.
	exists, err := s.config.Catalog.CheckTableExists(ctx, ident)
	if err == nil && exists {
		err = fmt.Errorf("%w: %s", catalog.ErrTableAlreadyExists, strings.Join(ident, "."))
	}
	if err != nil {
		return err
	}
	// The location contains a part of the UUID, so both are chosen here.
	id := uuid.New()
	location, err := s.tableLocation(ctx, ident, id) // also checks that the namespace exists
	if err != nil {
		return err
	}
	if c.Location != "" {
		if location, err = s.warehouse.checkNew("location", c.Location); err != nil {
			return err
		}
	}
	metadata, err := c.metadata(location, id)
	if err != nil {
		return invalidInput("table", err)
	}
	// A table that other writers cannot use must not be created.
	if err := checkChange(nil, metadata, time.Now()); err != nil {
		return err
	}
	if err := s.guard(ident, nil, metadata); err != nil {
		return err
	}
	// Nothing is stored: the client commits the metadata later, with its first snapshot.
	if c.Stage {
		return s.replyTable(w, r, metadata, "")
	}
	p, err := s.newPlan(ctx, ident, nil, metadata)
	if err != nil {
		return err
	}
	if err := s.land(ctx, []*plan{p}); err != nil {
		return notCreated(ident, err)
	}
	return s.replyTable(w, r, p.metadata, p.file)
}

// notCreated converts the conflict of a concurrent creation.
func notCreated(ident table.Identifier, err error) error {
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: %s", catalog.ErrTableAlreadyExists, strings.Join(ident, "."))
	}
	return err
}

// metadata returns the metadata of the new table.
func (c createRequest) metadata(location string, id uuid.UUID) (m table.Metadata, err error) {
	// Schemas, specs and orders of clients may make iceberg-go panic.
	defer guard(&err)
	var spec *iceberg.PartitionSpec
	if c.Spec != nil {
		spec = &c.Spec.PartitionSpec
	}
	order := table.UnsortedSortOrder
	if c.Order != nil {
		order = c.Order.SortOrder
	}
	return table.NewMetadataWithUUID(c.Schema, spec, order, location, c.Properties, id)
}

// registerTable creates a table from an existing metadata file.
func (s *Server) registerTable(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Name      string `json:"name"`
		File      string `json:"metadata-location"`
		Overwrite bool   `json:"overwrite"`
	}
	if err := read(r, &c); err != nil {
		return err
	}
	if err := requireOn(r, Admin, append(namespaceOf(r), c.Name)); err != nil {
		return err
	}
	if err := checkName("name", c.Name); err != nil {
		return err
	}
	file, err := s.warehouse.checkNew("metadata-location", c.File)
	if err != nil {
		return err
	}
	ctx, ident := r.Context(), append(namespaceOf(r), c.Name)
	// The file becomes the table's metadata as it is, so everything in it must be checked.
	move := Move{Table: ident, To: file}
	switch current, err := s.config.Catalog.LoadTable(ctx, ident); {
	case errors.Is(err, catalog.ErrNoSuchTable):
	case err != nil:
		return unavailable(err)
	case !c.Overwrite:
		return fmt.Errorf("%w: %s", catalog.ErrTableAlreadyExists, strings.Join(ident, "."))
	default:
		if err := s.guard(ident, current.Metadata(), nil); err != nil {
			return err
		}
		move.From = current.MetadataLocation()
	}
	// Read through the fence, because the client chose the file.
	files := func(ctx context.Context) (io.IO, error) { return s.files(ctx, file) }
	t, err := table.NewFromLocation(ctx, ident, file, files, nil)
	if err != nil {
		return badRequest("metadata-location: cannot read %s as table metadata", file)
	}
	if _, err := s.warehouse.checkNew("location of the metadata", t.Location()); err != nil {
		return err
	}
	if err := s.checkRegistrable(ctx, t); err != nil {
		return err
	}
	// A replaced table was guarded above.
	if move.From == "" {
		if err := s.guard(ident, nil, t.Metadata()); err != nil {
			return err
		}
	}
	// The swap fails if another table has this UUID, location or metadata file.
	move.Claim = &Claim{UUID: t.Metadata().TableUUID().String(), Location: t.Location()}
	if err := s.swap(ctx, []Move{move}); err != nil {
		if move.From == "" {
			return notCreated(ident, err)
		}
		return err
	}
	return s.replyTable(w, r, t.Metadata(), file)
}

// checkRegistrable returns an error if a client's metadata cannot be registered: it refers to files
// outside of its location, or is invalid.
func (s *Server) checkRegistrable(ctx context.Context, t *table.Table) error {
	names := []string{t.MetadataLocation()}
	for entry := range t.Metadata().PreviousFiles() {
		names = append(names, entry.MetadataFile)
	}
	// Maintenance deletes old metadata files, so they must be the table's own, too.
	for _, file := range names {
		if !s.warehouse.covers(t.Location(), file) {
			return forbidden("metadata-location: metadata file %s is not below the table's location, %s",
				file, t.Location())
		}
	}
	if err := s.checkPathProperties(nil, t.Metadata()); err != nil {
		return err
	}
	if err := s.checkOwnFiles(ctx, nil, t.Metadata()); err != nil {
		return err
	}
	return checkTable(t.Metadata(), time.Now())
}

// dropTable drops a table. With purgeRequested it also deletes the files.
func (s *Server) dropTable(w http.ResponseWriter, r *http.Request) error {
	purge := false
	if text := r.URL.Query().Get("purgeRequested"); text != "" {
		var err error
		if purge, err = strconv.ParseBool(text); err != nil {
			return badRequest("purgeRequested: %q is neither true nor false", text)
		}
	}
	ctx, ident := r.Context(), tableOf(r)
	// Guard drops without purge, too: Spark requests no purge and deletes the files itself.
	t, err := s.config.Catalog.LoadTable(ctx, ident)
	if errors.Is(err, catalog.ErrNoSuchTable) {
		return err
	}
	if err != nil && missing(err) { // nothing left to guard or purge
		s.config.Logger.Warn("dropping a table whose metadata is missing; its other files, if any, remain",
			"table", strings.Join(ident, "."), "error", err)
		if err := s.config.Catalog.DropTable(ctx, ident); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err != nil {
		return unavailable(err)
	}
	// Landers' tables may be protected.
	if err := s.config.Drop(ident, t.Metadata()); err != nil {
		return forbidden("%s: %v", strings.Join(ident, "."), err)
	}
	// Drop first: files may only be deleted once no table refers to them.
	if err := s.config.Catalog.DropTable(ctx, ident); err != nil {
		return err
	}
	if purge { // completed even if the client disconnects
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
		defer cancel()
		if err := s.purge(ctx, t); err != nil {
			s.config.Logger.Warn("purge failed; files of the dropped table remain",
				"table", strings.Join(ident, "."), "location", t.Location(), "error", err)
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// guard returns the configured Guard's error in the protocol's form.
func (s *Server) guard(name table.Identifier, before, after table.Metadata) error {
	if err := s.config.Guard(name, before, after); err != nil {
		return forbidden("%s: %v", strings.Join(name, "."), err)
	}
	return nil
}

// renameTable renames a table. Its files stay where they are.
func (s *Server) renameTable(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		From *identifier `json:"source"`
		To   *identifier `json:"destination"`
	}
	if err := read(r, &c); err != nil {
		return err
	}
	if c.From == nil || c.To == nil {
		return badRequest("source, destination: both are required")
	}
	// A rename needs rights to both names.
	for _, end := range []*identifier{c.From, c.To} {
		if err := requireOn(r, Admin, end.full()); err != nil {
			return err
		}
	}
	if err := checkName("destination", c.To.full()...); err != nil {
		return err
	}
	if len(c.To.Namespace) == 0 || len(c.From.Namespace) == 0 {
		return badRequest("source, destination: both need a namespace")
	}
	t, err := s.config.Catalog.LoadTable(r.Context(), c.From.full())
	if errors.Is(err, catalog.ErrNoSuchTable) {
		return err
	}
	if err != nil {
		return unavailable(err)
	}
	// Landers know their table by name, so the guard may refuse to rename it.
	if err := s.guard(c.From.full(), t.Metadata(), nil); err != nil {
		return err
	}
	if _, err := s.config.Catalog.RenameTable(r.Context(), c.From.full(), c.To.full()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// loadCredentials serves object store credentials for a table.
func (s *Server) loadCredentials(w http.ResponseWriter, r *http.Request) error {
	exists, err := s.config.Catalog.CheckTableExists(r.Context(), tableOf(r))
	if err == nil && !exists {
		err = catalog.ErrNoSuchTable
	}
	if err != nil {
		return err
	}
	return reply(w, map[string][]credential{"storage-credentials": s.credentials(r)})
}

// reportMetrics accepts a client's report about a scan or a commit. Only its type is logged, and
// not the filters that it contains.
func (s *Server) reportMetrics(w http.ResponseWriter, r *http.Request) error {
	var report struct {
		Type string `json:"report-type"`
	}
	if err := read(r, &report); err != nil {
		return err
	}
	if report.Type == "" {
		return badRequest("report-type: missing")
	}
	s.config.Logger.Debug("client report", "table", strings.Join(tableOf(r), "."), "type", report.Type)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
