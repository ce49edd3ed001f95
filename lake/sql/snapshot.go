package sql

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/millrace/millrace/internal/clickhouse"
)

// snapshot is a database of the engine in which every table is pinned to one metadata file. Its
// name is a hash of what it pins and of who may read it, and it never changes. So a query that runs
// in it sees one moment, regardless of other queries and landers.
type snapshot struct {
	key      string // hash of what it pins and for whom
	database string
	reader   string // the ClickHouse user of its queries
	scope    int    // index of that user; unscoped for clickhouse.Reader
	tables   []string
	pinned   []Table
	refused  map[string]error // tables that the engine refused, with reasons
	queries  int              // running queries
}

// unscoped is the scope of snapshots for callers that may read everything.
const unscoped = -1

// others returns the tables of other namespaces, including refused ones.
func (s *snapshot) others() []string {
	all := slices.AppendSeq(slices.Clone(s.tables), maps.Keys(s.refused))
	return slices.DeleteFunc(all, func(name string) bool { return !strings.Contains(name, ".") })
}

// snapshots manages the snapshots in which queries run: one per state of the lake that is in use,
// and the newest one.
type snapshots struct {
	client   *clickhouse.Client
	store    S3
	refusals refusals
	making   chan struct{} // a semaphore for creating and dropping databases

	secret string // makes the names of scoped databases unguessable

	// mu protects the following fields. It is not held while databases are created or dropped.
	mu     sync.Mutex
	made   map[string]*snapshot // by key
	newest *snapshot
	// forgotten snapshots are not used for new queries. They are dropped when their last query
	// ends.
	forgotten []*snapshot
	scopes    [clickhouse.ScopedReaders]bool // scoped users in use
}

// newSnapshots returns a manager without snapshots.
func newSnapshots(client *clickhouse.Client, store S3) *snapshots {
	return &snapshots{
		client: client, store: store, making: make(chan struct{}, 1),
		secret: rand.Text(), made: map[string]*snapshot{},
	}
}

// acquire returns the snapshot of these tables, creating it if necessary. The caller must release
// it. A scoped snapshot has a user of its own, which may read nothing else.
func (s *snapshots) acquire(ctx context.Context, tables []Table, scoped bool) (*snapshot, error) {
	// Queries of the same state and rights share a snapshot.
	key := contentOf(tables, s.store)
	if scoped {
		key = "scoped " + key
	}
	if snap := s.take(key); snap != nil {
		return snap, nil
	}
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if snap := s.take(key); snap != nil { // another query created it meanwhile
		return snap, nil
	}
	if err := s.dropUnused(ctx); err != nil {
		return nil, err
	}
	snap, err := s.name(key, scoped)
	if err != nil {
		return nil, err
	}
	snap.pinned = tables
	if err := s.create(ctx, snap, tables); err != nil {
		// Its user is only free after the incomplete database is dropped.
		s.mu.Lock()
		s.forgotten = append(s.forgotten, snap)
		s.mu.Unlock()
		return nil, fmt.Errorf("create the lake's tables in the engine: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made[key], s.newest = snap, snap
	snap.queries++
	return snap, nil
}

// name assigns a database and a user to a new snapshot.
func (s *snapshots) name(key string, scoped bool) (*snapshot, error) {
	if !scoped {
		return &snapshot{
			key: key, database: clickhouse.ReaderPrefix + key, reader: clickhouse.Reader, scope: unscoped,
		}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A user can be reused only after the database that it may read has been dropped.
	for n, taken := range s.scopes {
		if !taken {
			s.scopes[n] = true
			hash := sha256.Sum256([]byte(s.secret + key))
			return &snapshot{
				key: key, database: clickhouse.ScopedPrefix(n) + hex.EncodeToString(hash[:8]),
				reader: clickhouse.ScopedReader(n), scope: n,
			}, nil
		}
	}
	return nil, fmt.Errorf("%w: callers with %d different sets of rights are running queries",
		ErrBusy, clickhouse.ScopedReaders)
}

// free releases the user of a dropped snapshot.
func (s *snapshots) free(snap *snapshot) {
	if snap.scope == unscoped {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scopes[snap.scope] = false
}

// take returns an existing snapshot, or nil.
func (s *snapshots) take(key string) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.made[key]
	if snap != nil {
		s.newest = snap
		snap.queries++
	}
	return snap
}

// release ends a query's use of a snapshot.
func (s *snapshots) release(snap *snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap.queries--
}

// forget makes the next acquire create the snapshot again.
func (s *snapshots) forget(snap *snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[snap.key] == snap {
		delete(s.made, snap.key)
		s.forgotten = append(s.forgotten, snap)
	}
}

// dropUnused drops every database without running queries, except the newest, which the next query
// probably needs.
func (s *snapshots) dropUnused(ctx context.Context) error {
	s.mu.Lock()
	var unused []*snapshot
	for key, snap := range s.made {
		if snap.queries == 0 && snap != s.newest {
			unused = append(unused, snap)
			delete(s.made, key)
		}
	}
	s.forgotten = slices.DeleteFunc(s.forgotten, func(snap *snapshot) bool {
		done := snap.queries == 0
		if done && snap.scope != unscoped { // an unscoped name may already be in use by its successor
			unused = append(unused, snap)
		}
		return done
	})
	s.mu.Unlock()
	for i, snap := range unused {
		if err := s.drop(ctx, snap); err != nil {
			s.mu.Lock()
			s.forgotten = append(s.forgotten, unused[i:]...) // retried later
			s.mu.Unlock()
			return fmt.Errorf("drop an old snapshot: %w", err)
		}
		s.free(snap)
	}
	return nil
}

// drop drops a snapshot's database.
func (s *snapshots) drop(ctx context.Context, snap *snapshot) error {
	return s.client.Exec(ctx, "DROP DATABASE IF EXISTS "+quoteName(snap.database), nil)
}

// create creates the database and its tables. Tables that the engine refuses are skipped and
// recorded, so that they do not affect the others. It is idempotent: it completes an interrupted
// attempt, and tolerates another process creating the same database on a shared server, since the
// name determines the content.
func (s *snapshots) create(ctx context.Context, snap *snapshot, tables []Table) error {
	database := quoteName(snap.database)
	if err := s.client.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+database+" ENGINE = Memory", nil); err != nil {
		return err
	}
	for _, t := range tables {
		err := s.createTable(ctx, database+"."+quoteName(t.Name), t)
		s.store.hide(err)
		if refusedTable(err) {
			if snap.refused == nil {
				snap.refused = map[string]error{}
			}
			snap.refused[t.Name] = err
			s.refusals.put(t.Name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		s.refusals.put(t.Name, nil)
		snap.tables = append(snap.tables, t.Name)
	}
	slices.Sort(snap.tables)
	return nil
}

// createTable creates one table, or the view of one.
func (s *snapshots) createTable(ctx context.Context, name string, t Table) error {
	if t.definition != "" {
		return s.client.Exec(ctx, t.view(name), nil)
	}
	engine, err := s.engine(t)
	if err != nil {
		return err
	}
	return s.client.Exec(ctx, "CREATE TABLE IF NOT EXISTS "+name+" ENGINE = "+engine, storeSettings)
}

// engine returns the ClickHouse table engine for a table pinned to its metadata file.
func (s *snapshots) engine(t Table) (string, error) {
	location, metadata, err := t.paths()
	if err != nil {
		return "", err
	}
	// Without this setting, ClickHouse would look for the newest metadata file itself.
	pinned := " SETTINGS iceberg_metadata_file_path = " + quote(metadata)
	if !strings.HasPrefix(location, s3Scheme) {
		if s.client.External() {
			return "", fmt.Errorf("it is in the local folder %s, which the ClickHouse server at %s cannot read: "+
				"put the warehouse into an object store (lake.warehouse: s3://…), "+
				"or leave clickhouse.url empty to use the embedded engine", location, s.client.URL())
		}
		return "IcebergLocal(" + quote(location) + ")" + pinned, nil
	}
	keys := ""
	if s.store.AccessKey != "" {
		keys = ", " + quote(s.store.AccessKey) + ", " + quote(s.store.SecretKey)
	}
	return "IcebergS3(" + quote(s.store.url(location)) + keys + ")" + pinned, nil
}

// s3Scheme is the prefix of locations in an object store.
const s3Scheme = "s3://"

// storeSettings limit retries against an unreachable object store, which would otherwise take
// minutes.
var storeSettings = map[string]string{
	"s3_retry_attempts": "4", "s3_connect_timeout_ms": "3000", "s3_request_timeout_ms": "20000",
}

// url returns the HTTP address of a folder in the store.
func (c S3) url(location string) string {
	name, folder, _ := strings.Cut(strings.TrimPrefix(location, s3Scheme), "/")
	if c.Endpoint == "" {
		return "https://" + name + ".s3." + c.Region + ".amazonaws.com/" + folder + "/"
	}
	return strings.TrimSuffix(c.Endpoint, "/") + "/" + name + "/" + folder + "/"
}

// hide removes the secret key from an error message.
func (c S3) hide(err error) {
	if e := (*clickhouse.Error)(nil); c.SecretKey != "" && errors.As(err, &e) {
		// Statements contain the key in its escaped form.
		hidden := strings.NewReplacer(c.SecretKey, "[HIDDEN]", escapes.Replace(c.SecretKey), "[HIDDEN]")
		e.Message = hidden.Replace(e.Message)
	}
}

// paths returns the table's folder and its metadata file relative to it.
func (t Table) paths() (location, metadata string, err error) {
	if strings.HasPrefix(t.Location, s3Scheme) {
		metadata, below := strings.CutPrefix(t.MetadataLocation, t.Location+"/")
		if !below || !filepath.IsLocal(metadata) {
			return "", "", fmt.Errorf("its metadata file %s is not in its folder %s", t.MetadataLocation, t.Location)
		}
		return t.Location, metadata, nil
	}
	location, err1 := localPath(t.Location)
	file, err2 := localPath(t.MetadataLocation)
	if err := errors.Join(err1, err2); err != nil {
		return "", "", err
	}
	metadata, err = filepath.Rel(location, file)
	if err != nil || !filepath.IsLocal(metadata) {
		return "", "", fmt.Errorf("its metadata file %s is not in its folder %s", file, location)
	}
	return location, metadata, nil
}

// localPath returns the path of a location without decoding it, which is how the engine treats the
// locations in metadata.
func localPath(s string) (string, error) {
	path, isFile := strings.CutPrefix(s, "file:")
	if isFile && strings.HasPrefix(path, "//") {
		path = strings.TrimPrefix(path[2:], "localhost")
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is neither an absolute path nor a file:// or s3:// URL", s)
	}
	return filepath.FromSlash(path), nil
}

// contentOf returns a hash of the tables, their states, and the settings of the store.
func contentOf(tables []Table, store S3) string {
	sorted := slices.SortedFunc(slices.Values(tables), func(a, b Table) int {
		return strings.Compare(a.Name, b.Name)
	})
	h := sha256.New()
	parts := []string{store.Endpoint, store.Region, store.AccessKey, store.SecretKey}
	for _, t := range sorted {
		parts = append(parts, t.Name, t.Location, t.MetadataLocation, t.definition)
	}
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash accepts everything
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
