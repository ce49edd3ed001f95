package sql

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/millrace/millrace/internal/clickhouse"
)

// snapshot is a database of the engine in which every table is pinned to one metadata file. Its name is a hash of what it
// pins, and it never changes, so that a query that runs in it sees one moment, whatever other queries and the lander do.
type snapshot struct {
	database string
	tables   []string
	queries  int // that run in it
}

// snapshots keeps one snapshot per state of the lake that a query runs in, and the newest.
type snapshots struct {
	client *clickhouse.Client
	making chan struct{} // held by the one who talks to the engine about databases

	mu     sync.Mutex
	made   map[string]*snapshot
	newest *snapshot
}

func newSnapshots(client *clickhouse.Client) *snapshots {
	return &snapshots{client: client, making: make(chan struct{}, 1), made: map[string]*snapshot{}}
}

// acquire returns the snapshot of these tables, which release gives back.
func (s *snapshots) acquire(ctx context.Context, tables []Table) (*snapshot, error) {
	name := databaseOf(tables)
	if snap := s.take(name); snap != nil {
		return snap, nil
	}
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if snap := s.take(name); snap != nil { // somebody made it meanwhile
		return snap, nil
	}
	if err := s.dropUnused(ctx); err != nil {
		return nil, err
	}
	snap := &snapshot{database: name}
	if err := s.create(ctx, snap, tables); err != nil {
		return nil, fmt.Errorf("show the lake's tables to the engine: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made[name], s.newest = snap, snap
	snap.queries++
	return snap, nil
}

func (s *snapshots) take(name string) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.made[name]
	if snap != nil {
		s.newest = snap
		snap.queries++
	}
	return snap
}

func (s *snapshots) release(snap *snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap.queries--
}

// forget makes the next acquire create snap anew.
func (s *snapshots) forget(snap *snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[snap.database] == snap {
		delete(s.made, snap.database)
	}
}

// dropUnused drops every database in which no query runs, but the newest: the next query may well want that.
func (s *snapshots) dropUnused(ctx context.Context) error {
	s.mu.Lock()
	var unused []string
	for name, snap := range s.made {
		if snap.queries == 0 && snap != s.newest {
			unused = append(unused, name)
			delete(s.made, name)
		}
	}
	s.mu.Unlock()
	for _, name := range unused {
		if err := s.client.Exec(ctx, "DROP DATABASE IF EXISTS "+quoteName(name), nil); err != nil {
			return fmt.Errorf("drop an old snapshot: %w", err)
		}
	}
	return nil
}

// create makes the database whole: what an interrupted attempt left is replaced.
func (s *snapshots) create(ctx context.Context, snap *snapshot, tables []Table) error {
	for _, sql := range []string{"DROP DATABASE IF EXISTS ", "CREATE DATABASE "} {
		engine := ""
		if sql == "CREATE DATABASE " {
			engine = " ENGINE = Memory"
		}
		if err := s.client.Exec(ctx, sql+quoteName(snap.database)+engine, nil); err != nil {
			return err
		}
	}
	for _, t := range tables {
		location, metadata, err := t.paths()
		if err == nil {
			err = s.client.Exec(ctx, fmt.Sprintf("CREATE TABLE %s.%s ENGINE = IcebergLocal(%s) SETTINGS iceberg_metadata_file_path = %s",
				quoteName(snap.database), quoteName(t.Name), quote(location), quote(metadata)), nil)
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		snap.tables = append(snap.tables, t.Name)
	}
	slices.Sort(snap.tables)
	return nil
}

// paths are the table's folder, and its metadata file relative to it.
func (t Table) paths() (location, metadata string, err error) {
	location, err1 := localPath(t.Location)
	file, err2 := localPath(t.MetadataLocation)
	if err := errors.Join(err1, err2); err != nil {
		return "", "", err
	}
	metadata, err = filepath.Rel(location, file)
	if err != nil || !filepath.IsLocal(metadata) {
		return "", "", fmt.Errorf("its metadata file %s does not lie in its folder %s", file, location)
	}
	return location, metadata, nil
}

func localPath(s string) (string, error) {
	if filepath.IsAbs(s) {
		return s, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "file" || u.Host != "" || u.Path == "" {
		return "", fmt.Errorf("%q is neither an absolute path nor a file:// URL", s)
	}
	return filepath.FromSlash(u.Path), nil
}

// databaseOf names the database that pins these tables.
func databaseOf(tables []Table) string {
	sorted := slices.SortedFunc(slices.Values(tables), func(a, b Table) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, t := range sorted {
		for _, part := range []string{t.Name, t.Location, t.MetadataLocation} {
			_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash takes everything
		}
	}
	return clickhouse.ReaderPrefix + hex.EncodeToString(h.Sum(nil)[:8])
}
