package restcatalog

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// Claim is what a new or moved table needs for itself. No other table may have its UUID or an
// overlapping location.
type Claim struct {
	UUID     string
	Location string
}

// Placed is a table of the catalog and the location of its metadata.
type Placed struct {
	Table    table.Identifier
	Metadata string
}

// claims returns a check of the moves' claims against all other tables, or nil if there are no
// claims. The check runs in the transaction of the swap.
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
		// Identities of unchanged metadata files come from the cache.
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
			for j, other := range moves { // other moves of the transaction
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

// clash returns an error if a move conflicts with another table.
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

// identity is what distinguishes a table from others.
type identity struct {
	name  string
	file  string // current metadata file
	claim Claim
}

// identify reads the identity of a table. Metadata files are immutable, so it is cached by file. If
// the file cannot be read, the table is assumed to be in the folder above that of the metadata,
// because metadata is always in a folder below the location.
func (s *Server) identify(ctx context.Context, t Placed) identity {
	id := identity{name: strings.Join(t.Table, "."), file: t.Metadata}
	if claim, ok := s.identities.Get(t.Metadata); ok {
		id.claim = claim
		return id
	}
	// The metadata is read through the fence, like all files that clients can name.
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

// identitiesKept is the maximum number of cached identities.
const identitiesKept = 4096

// parent returns the folder of a location.
func parent(location string) string {
	scheme, rest, found := strings.Cut(location, "://")
	if !found {
		return path.Dir(location)
	}
	return scheme + "://" + path.Dir(rest)
}

// claim returns what a plan claims, or nil if UUID and location stay the same.
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
