package restcatalog

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
)

// change is a requested commit to one table.
type change struct {
	table        table.Identifier
	requirements []table.Requirement
	updates      []table.Update
}

// changeRequest is the body of a commit. The lists are decoded separately, for better errors.
type changeRequest struct {
	Identifier   *identifier     `json:"identifier"`
	Requirements json.RawMessage `json:"requirements"`
	Updates      json.RawMessage `json:"updates"`
}

// change decodes the requirements and updates. Unknown ones are an error, as the specification
// demands.
func (c changeRequest) change(ident table.Identifier) (_ change, err error) {
	var requirements table.Requirements
	var updates table.Updates
	// Both lists are required, though they may be empty.
	for _, list := range []struct {
		field string
		raw   json.RawMessage
		into  any
	}{{"requirements", c.Requirements, &requirements}, {"updates", c.Updates, &updates}} {
		if len(list.raw) == 0 {
			return change{}, badRequest("%s: missing", list.field)
		}
		if err := unmarshalGuarded(list.raw, list.into); err != nil {
			return change{}, decodeError(list.raw, list.field, err)
		}
	}
	return change{ident, requirements, updates}, nil
}

// commitTable serves a commit to one table.
func (s *Server) commitTable(w http.ResponseWriter, r *http.Request) error {
	var body changeRequest
	if err := read(r, &body); err != nil {
		return err
	}
	ident := tableOf(r)
	if body.Identifier != nil && !slices.Equal(body.Identifier.full(), ident) {
		return badRequest("identifier: %s does not match table %s in the path",
			strings.Join(body.Identifier.full(), "."), strings.Join(ident, "."))
	}
	c, err := body.change(ident)
	if err != nil {
		return err
	}
	// A commit to one table is a transaction with one change.
	plans, err := s.commit(r.Context(), []change{c})
	if err != nil {
		return err
	}
	return reply(w, struct {
		MetadataLocation string         `json:"metadata-location"`
		Metadata         table.Metadata `json:"metadata"`
	}{plans[0].file, plans[0].metadata})
}

// commitTransaction serves an atomic commit to several tables. The caller needs rights to each.
func (s *Server) commitTransaction(w http.ResponseWriter, r *http.Request) error {
	changes, err := readTransaction(r)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := requireOn(r, Write, c.table); err != nil {
			return err
		}
	}
	if _, err := s.commit(r.Context(), changes); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readTransaction decodes a transaction. Each table may occur only once, since the order of changes
// would otherwise matter.
func readTransaction(r *http.Request) ([]change, error) {
	var body struct {
		Changes []changeRequest `json:"table-changes"`
	}
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if len(body.Changes) == 0 {
		return nil, badRequest("table-changes: missing or empty")
	}
	var changes []change
	seen := map[string]bool{}
	// Validate all parts before any of them is planned.
	for i, b := range body.Changes {
		if b.Identifier == nil || len(b.Identifier.Namespace) == 0 || b.Identifier.Name == "" {
			return nil, badRequest("table-changes[%d].identifier: namespace and name are required", i)
		}
		ident := b.Identifier.full()
		key := strings.Join(ident, separator)
		if seen[key] {
			return nil, badRequest("table-changes[%d].identifier: duplicate table %s", i, strings.Join(ident, "."))
		}
		seen[key] = true
		c, err := b.change(ident)
		if err != nil {
			var f *apiError
			if errors.As(err, &f) {
				f.message = fmt.Sprintf("table-changes[%d].%s", i, f.message)
			}
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// maxAttempts is the number of attempts if other commits come first. Each attempt checks the
// client's requirements again, so a commit never lands on a state that the client did not expect.
const maxAttempts = 5

// commit applies all changes or none.
func (s *Server) commit(ctx context.Context, changes []change) ([]*plan, error) {
	for try := 1; ; try++ {
		var plans []*plan
		for _, c := range changes {
			p, err := s.plan(ctx, c)
			if err != nil {
				return nil, err
			}
			plans = append(plans, p)
		}
		// All metadata files are written before a single swap makes them current.
		err := s.land(ctx, plans)
		if err == nil {
			s.removeReplaced(ctx, plans)
			return plans, nil
		}
		if !errors.Is(err, ErrConflict) || try == maxAttempts {
			return nil, err
		}
	}
}

// plan is the new state of a table.
type plan struct {
	table    table.Identifier
	current  *table.Table // nil if the table does not exist yet
	metadata table.Metadata
	file     string // file for the new metadata; the current file if nothing changes
}

// changes reports whether the plan changes the table.
func (p *plan) changes() bool { return p.current == nil || p.file != p.current.MetadataLocation() }

// move returns the swap of metadata files that carries out the plan.
func (p *plan) move() Move {
	// From is empty for a new table.
	m := Move{Table: p.table, To: p.file, Claim: p.claim()}
	if p.current != nil {
		m.From = p.current.MetadataLocation()
	}
	return m
}

// plan validates a change against the current state of the table. It writes nothing.
func (s *Server) plan(ctx context.Context, c change) (*plan, error) {
	// A commit creates a table if it asserts that the table does not exist.
	creates := slices.ContainsFunc(c.requirements, func(r table.Requirement) bool {
		return r.GetType() == table.AssertCreate().GetType()
	})
	// Load the table in every attempt, as another commit may have come first.
	current, err := s.config.Catalog.LoadTable(ctx, c.table)
	switch {
	case errors.Is(err, catalog.ErrNoSuchTable):
		if !creates {
			return nil, err
		}
		current = nil
		if err := checkName("table", c.table...); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, unavailable(err)
	}
	var base table.Metadata
	if current != nil {
		base = current.Metadata()
	}
	// The client's requirements are checked against the current state, in every attempt.
	for _, r := range c.requirements {
		if err := validateGuarded(r, base); err != nil {
			return nil, commitFailed("%s: %v", strings.Join(c.table, "."), err)
		}
	}
	if current == nil {
		metadata, err := s.create(ctx, c)
		if err != nil {
			return nil, err
		}
		if err := checkHistory(nil, c.updates); err != nil {
			return nil, err
		}
		if err := s.guard(c.table, nil, metadata); err != nil {
			return nil, err
		}
		return s.validPlan(ctx, c.table, nil, metadata)
	}
	// Only assertions: the table must be unchanged in the swap.
	if len(c.updates) == 0 {
		return &plan{c.table, current, base, current.MetadataLocation()}, nil
	}
	metadata, err := update(base, c.updates, current.MetadataLocation())
	if err != nil {
		return nil, refused(c.table, err)
	}
	if err := checkHistory(base, c.updates); err != nil {
		return nil, err
	}
	if err := s.guard(c.table, base, metadata); err != nil {
		return nil, err
	}
	// Files of existing snapshots would be outside of the new location.
	if metadata.Location() != base.Location() && len(base.Snapshots()) > 0 {
		return nil, forbidden("set-location: the table has files below %s, and must keep all files below its location",
			base.Location())
	}
	return s.validPlan(ctx, c.table, current, metadata)
}

// validPlan returns the plan for new metadata after checking that other writers can use it.
func (s *Server) validPlan(
	ctx context.Context, ident table.Identifier, current *table.Table, metadata table.Metadata,
) (*plan, error) {
	p, err := s.newPlan(ctx, ident, current, metadata)
	if err != nil {
		return nil, err
	}
	var before table.Metadata
	if current != nil {
		before = current.Metadata()
	}
	return p, checkChange(before, metadata, time.Now())
}

// refused returns the error for updates that do not apply to the table.
func refused(ident table.Identifier, err error) error {
	// Another branch was changed: the client retries with the next number.
	if strings.Contains(err.Error(), "sequence number") {
		return commitFailed("%s: %v", strings.Join(ident, "."), err)
	}
	return invalidInput("updates: "+strings.Join(ident, "."), err)
}

// create returns the metadata of a table that the change creates, with defaults for what the change
// omits.
func (s *Server) create(ctx context.Context, c change) (table.Metadata, error) {
	// has lists the kinds of updates that the client sent.
	var has []string
	for _, u := range c.updates {
		has = append(has, u.Action())
	}
	// Fill in what the client has left to the catalog.
	updates := slices.Clone(c.updates)
	id := uuid.New()
	if !slices.Contains(has, table.UpdateAssignUUID) {
		updates = append(updates, table.NewAssignUUIDUpdate(id))
	}
	if !slices.Contains(has, table.UpdateUpgradeFormatVersion) {
		format := table.NewUpgradeFormatVersionUpdate(table.DefaultFormatVersion)
		updates = append([]table.Update{format}, updates...)
	}
	// The default location, unless the client sets one.
	location, err := s.tableLocation(ctx, c.table, id) // also checks that the namespace exists
	if err != nil {
		return nil, err
	}
	if !slices.Contains(has, table.UpdateSetLocation) {
		updates = append(updates, table.NewSetLocationUpdate(location))
	}
	slices.SortStableFunc(updates, func(a, b table.Update) int { return creationRank(a) - creationRank(b) })
	metadata, err := update(nil, updates, "")
	if err != nil {
		return nil, refused(c.table, err)
	}
	return metadata, nil
}

// creationRank orders the updates of a new table. A sort order refers to the schema, but DuckDB
// sends it first.
func creationRank(u table.Update) int {
	order := []string{
		table.UpdateUpgradeFormatVersion, table.UpdateAssignUUID, table.UpdateAddSchema, table.UpdateSetCurrentSchema,
	}
	if at := slices.Index(order, u.Action()); at >= 0 {
		return at
	}
	return len(order)
}

// update applies updates to metadata, or to empty metadata if base is nil.
func update(base table.Metadata, updates []table.Update, file string) (m table.Metadata, err error) {
	defer guard(&err)
	if base != nil {
		return table.UpdateTableMetadata(base, updates, file)
	}
	// The lowest format. create has added an update that sets the actual one.
	b, err := table.NewMetadataBuilder(1)
	if err != nil {
		return nil, err
	}
	for _, u := range updates {
		if err := u.Apply(b); err != nil {
			return nil, err
		}
	}
	return b.Build()
}

// pathProperties has the properties that place files outside of a table's location.
var pathProperties = []string{
	table.WriteMetadataPathKey, table.WriteDataPathKey, "write.object-storage.path", "write.folder-storage.path",
}

// checkPathProperties returns an error if a property newly places files outside of the table's
// location. Unchanged properties are accepted.
func (s *Server) checkPathProperties(before, after table.Metadata) error {
	for _, key := range pathProperties {
		location, ok := after.Properties()[key]
		if !ok || before != nil && before.Properties()[key] == location {
			continue
		}
		if _, err := s.warehouse.checkNew(key, location); err != nil {
			return err
		}
		// Any file in the folder stands for all of them.
		if !s.warehouse.covers(after.Location(), location+"/x") {
			return forbidden("%s: %s is not below the table's location, %s", key, location, after.Location())
		}
	}
	return nil
}

// newPlan chooses the file for new metadata. It checks that the table stays in the warehouse and
// refers to its own files only.
func (s *Server) newPlan(
	ctx context.Context, ident table.Identifier, current *table.Table, metadata table.Metadata,
) (*plan, error) {
	// Existing locations of older tables are accepted even if they would be refused today.
	check := s.warehouse.checkNew
	if current != nil && current.Location() == metadata.Location() {
		check = s.warehouse.check
	}
	if _, err := check("location", metadata.Location()); err != nil {
		return nil, err
	}
	var before table.Metadata
	if current != nil {
		before = current.Metadata()
	}
	if err := s.checkPathProperties(before, metadata); err != nil {
		return nil, err
	}
	if err := s.checkOwnFiles(ctx, before, metadata); err != nil {
		return nil, err
	}
	// Version numbers in file names increase, which other catalogs and tools expect.
	version := 0
	if current != nil {
		// Names are VERSION-UUID.metadata.json. Other catalogs also use vVERSION.metadata.json.
		name := strings.TrimPrefix(path.Base(current.MetadataLocation()), "v")
		digits := name[:len(name)-len(strings.TrimLeft(name, "0123456789"))]
		if n, err := strconv.Atoi(digits); err == nil {
			version = n + 1
		}
	}
	// The table's properties may choose another folder for metadata.
	locations, err := table.LoadLocationProvider(metadata.Location(), metadata.Properties())
	if err != nil {
		return nil, badRequest("location: %v", err)
	}
	file, err := locations.NewTableMetadataFileLocation(version)
	if err != nil {
		return nil, badRequest("properties: %v", err)
	}
	if file, err = s.warehouse.check(table.WriteMetadataPathKey, file); err != nil {
		return nil, err
	}
	return &plan{ident, current, metadata, file}, nil
}

// land writes the metadata of the plans and swaps the tables to it. If the process dies in between,
// it leaves unreferenced files.
func (s *Server) land(ctx context.Context, plans []*plan) error {
	changes := false
	var moves []Move
	var written []string
	// Write every file before the swap, so that no table points to a missing one.
	for _, p := range plans {
		// Unchanged tables take part in the swap, too: it asserts their state.
		moves = append(moves, p.move())
		if !p.changes() {
			continue
		}
		changes = true
		written = append(written, p.file)
		if err := s.write(ctx, p); err != nil {
			s.remove(ctx, written)
			var f *apiError
			if errors.As(err, &f) {
				return f
			}
			return unavailable(err)
		}
	}
	if !changes {
		return nil
	}
	// The swap is the commit. Before it, the new files are invisible.
	err := s.swap(ctx, moves)
	// Keep the files if the outcome is unknown: the commit may have landed.
	var f *apiError
	if unknown := errors.As(err, &f) && f.status == http.StatusInternalServerError; err != nil && !unknown {
		s.remove(ctx, written)
	}
	return err
}

// Timeouts of a swap, which continues if the client disconnects, and of removing files.
const (
	swapTimeout   = 30 * time.Second
	removeTimeout = 10 * time.Second
)

// swap moves tables and maps failures to errors that clients distinguish.
func (s *Server) swap(ctx context.Context, moves []Move) error {
	// Do not start a swap for a client that has disconnected.
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	// A swap that was sent must be followed to its end, to know the outcome.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), swapTimeout)
	defer cancel()
	// nil unless a move claims a UUID or location.
	check := s.claimsCheck(moves)
	if check != nil {
		// Fill the cache first, so that the transaction reads few files.
		tables, err := s.config.Swapper.Tables(ctx)
		if err != nil {
			return unavailable(err)
		}
		for _, t := range tables {
			s.identify(ctx, t)
		}
	}
	err := s.config.Swapper.Swap(ctx, moves, check)
	if f, ok := asAPIError(err); ok {
		return f
	}
	switch {
	case err == nil, errors.Is(err, ErrConflict), errors.Is(err, catalog.ErrNoSuchNamespace):
		return err
	case errors.Is(err, ErrNotSwapped):
		return unavailable(err)
	}
	return stateUnknown(err)
}

// encode returns the content of a plan's metadata file.
func encode(p *plan) (b []byte, err error) {
	defer guard(&err)
	if b, err = json.Marshal(p.metadata); err != nil {
		return nil, badRequest("updates: cannot encode the resulting metadata: %v", err)
	}
	switch { // the file name determines the compression
	case strings.HasSuffix(p.file, ".gz.metadata.json"):
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, err := z.Write(b)
		err = errors.Join(err, z.Close())
		return packed.Bytes(), err
	case strings.HasSuffix(p.file, ".zstd.metadata.json"):
		return nil, badRequest("%s: must be none or gzip", table.MetadataCompressionKey)
	}
	return b, nil
}

// write writes a plan's metadata file.
func (s *Server) write(ctx context.Context, p *plan) error {
	b, err := encode(p)
	if err != nil {
		return err
	}
	files, err := s.files(ctx, p.file)
	if err != nil {
		return err
	}
	if err := files.WriteFile(p.file, b); err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	return nil
}

// remove removes unreferenced metadata files. Files that cannot be removed are left to orphan
// removal.
func (s *Server) remove(ctx context.Context, written []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	for _, file := range written {
		files, err := s.files(ctx, file)
		if err == nil {
			err = files.Remove(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.config.Logger.Warn("cannot remove an unreferenced metadata file", "file", file, "error", err)
		}
	}
}

// removeReplaced removes metadata files that a commit dropped from the table's log, if the table's
// properties ask for it. In a REST catalog this is the server's task.
func (s *Server) removeReplaced(ctx context.Context, plans []*plan) {
	// A failure here does not matter: the files become orphans.
	for _, p := range plans {
		enabled := p.metadata.Properties().GetBool(
			table.MetadataDeleteAfterCommitEnabledKey, table.MetadataDeleteAfterCommitEnabledDefault)
		if p.current == nil || !p.changes() || !enabled {
			continue
		}
		// Delete only files that dropped out of the log with this commit and are inside of the
		// table's folder.
		kept := map[string]bool{}
		for entry := range p.metadata.PreviousFiles() {
			kept[entry.MetadataFile] = true
		}
		var gone []string
		for entry := range p.current.Metadata().PreviousFiles() {
			if !kept[entry.MetadataFile] && s.warehouse.covers(p.metadata.Location(), entry.MetadataFile) {
				gone = append(gone, entry.MetadataFile)
			}
		}
		s.remove(ctx, gone)
	}
}
