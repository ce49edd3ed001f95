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

// TableEntry is a table of the catalog and the location of its metadata.
type TableEntry struct {
	Table    table.Identifier
	Metadata string
}

// claimsCheck returns a check of the moves' claims against all other tables, or nil if there are no
// claims. The check runs in the transaction of the swap.
func (s *Server) claimsCheck(moves []Move) func(ctx context.Context, tables []TableEntry) error {
	// Most commits claim nothing, and need no check.
	claimed := false
	for _, m := range moves {
		claimed = claimed || m.Claim != nil
	}
	if !claimed {
		return nil
	}
	// Landers create tables without this server, so the check has to look at all of them.
	return func(ctx context.Context, tables []TableEntry) error {
		var others []identity
		// Identities of unchanged metadata files come from the cache.
		for _, t := range tables {
			others = append(others, s.identify(ctx, t))
		}
		// Compare each claim with the other tables, and with the other moves.
		for i, m := range moves {
			if m.Claim == nil {
				continue
			}
			for _, other := range others {
				if err := s.checkClaim(m, other); err != nil {
					return err
				}
			}
			for j, other := range moves { // other moves of the transaction
				if i != j && other.Claim != nil {
					id := identity{name: strings.Join(other.Table, "."), claim: *other.Claim, file: other.To}
					if err := s.checkClaim(m, id); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
}

// checkClaim returns an error if a move conflicts with another table.
func (s *Server) checkClaim(m Move, other identity) error {
	name := strings.Join(m.Table, ".")
	// A table may replace its own metadata.
	switch {
	case name == other.name:
		return nil
	case m.To == other.file:
		return forbidden("metadata-location: %s already belongs to table %s", m.To, other.name)
	case m.Claim.UUID == other.claim.UUID:
		return forbidden("table-uuid: %s already belongs to table %s", m.Claim.UUID, other.name)
	case s.warehouse.overlap(m.Claim.Location, other.claim.Location):
		return forbidden("location: %s overlaps with %s of table %s; "+
			"cleaning up one table would delete files of the other",
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
func (s *Server) identify(ctx context.Context, t TableEntry) identity {
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

// maxIdentities is the maximum number of cached identities.
const maxIdentities = 4096

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
	// A new table always claims its UUID and location.
	id := p.metadata.TableUUID().String()
	if p.current != nil && p.current.Metadata().TableUUID().String() == id &&
		p.current.Location() == p.metadata.Location() {
		return nil
	}
	return &Claim{UUID: id, Location: p.metadata.Location()}
}

// asAPIError returns the error that is to be sent to the client, if err wraps one.
func asAPIError(err error) (*apiError, bool) {
	var f *apiError
	ok := errors.As(err, &f)
	return f, ok
}
