package restcatalog

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// A Claim is what a new table, or one that moves, wants for itself: no other table has its id, or a
// location that overlaps with its.
type Claim struct {
	UUID     string
	Location string
}

// Placed is a table of the catalog and where its metadata is.
type Placed struct {
	Table    table.Identifier
	Metadata string
}

// claims returns the claims of moves, checked against all other tables as they are in the swap's
// own transaction.
func (s *Server) claims(moves []Move) func(ctx context.Context, tables []Placed) error {
	claimed := false
	for _, m := range moves {
		claimed = claimed || m.Claim != nil
	}
	if !claimed {
		return nil
	}
	return func(ctx context.Context, tables []Placed) error {
		var others []identity
		for _, t := range tables {
			others = append(others, s.identify(ctx, t))
		}
		for i, m := range moves {
			if m.Claim == nil {
				continue
			}
			for _, other := range others {
				if err := s.clash(m, other); err != nil {
					return err
				}
			}
			for j, other := range moves { // those of the same transaction
				if i != j && other.Claim != nil {
					if err := s.clash(m, identity{name: strings.Join(other.Table, "."), claim: *other.Claim, file: other.To}); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
}

func (s *Server) clash(m Move, other identity) error {
	name := strings.Join(m.Table, ".")
	switch {
	case name == other.name:
		return nil
	case m.To == other.file:
		return forbidden("metadata-location: %s is that of table %s; one metadata file is one table", m.To, other.name)
	case m.Claim.UUID == other.claim.UUID:
		return forbidden("table-uuid: %s is that of table %s; two tables are never one", m.Claim.UUID, other.name)
	case s.warehouse.overlap(m.Claim.Location, other.claim.Location):
		return forbidden("location: %s overlaps with %s, that of table %s: whoever cleans up after one would remove the other's files",
			m.Claim.Location, other.claim.Location, other.name)
	}
	return nil
}

// identity is what a table is known by.
type identity struct {
	name  string
	file  string // of its metadata
	claim Claim
}

// identify reads what a table is known by. A metadata file never changes, so it is read once. Where
// it cannot be read the table is taken to have the folder above it, as every table's metadata is in
// one below its location.
func (s *Server) identify(ctx context.Context, t Placed) identity {
	id := identity{name: strings.Join(t.Table, "."), file: t.Metadata}
	if claim, ok := s.identities.Get(t.Metadata); ok {
		id.claim = claim
		return id
	}
	files := func(ctx context.Context) (io.IO, error) { return s.files(ctx, t.Metadata) }
	read, err := table.NewFromLocation(ctx, t.Table, t.Metadata, files, nil)
	if err != nil {
		id.claim = Claim{Location: parent(parent(t.Metadata))}
		return id
	}
	id.claim = Claim{UUID: read.Metadata().TableUUID().String(), Location: read.Location()}
	s.identities.Add(t.Metadata, id.claim)
	return id
}

// identitiesKept bounds what is remembered of metadata files.
const identitiesKept = 4096

// parent returns the folder of a URL's path.
func parent(location string) string {
	scheme, rest, found := strings.Cut(location, "://")
	if !found {
		return path.Dir(location)
	}
	return scheme + "://" + path.Dir(rest)
}

// claim returns what a plan claims: nothing where the table stays what and where it is.
func (p *plan) claim() *Claim {
	id := p.metadata.TableUUID().String()
	if p.current != nil && p.current.Metadata().TableUUID().String() == id && p.current.Location() == p.metadata.Location() {
		return nil
	}
	return &Claim{UUID: id, Location: p.metadata.Location()}
}

func asFailure(err error) (*failure, bool) {
	var f *failure
	ok := errors.As(err, &f)
	return f, ok
}
