package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
)

// Right is what a call requires: a surface, or a part of one after a dot.
type Right string

// Surfaces, on which rights are granted, as a whole or in parts. All listeners use these
// definitions.
const (
	Commands = "commands" // parts: services
	Queries  = "queries"  // parts: services, and features
	SQL      = "sql"      // parts: tables, as queries address them
	// Parts of Catalog are read, write and admin. Each includes the previous ones. A table may
	// follow: read.web.clicks.
	Catalog    = "catalog"
	Operations = "operations" // status, verify, failpoints; it has no parts
	Flags      = "flags"      // parts: read, write
	Profiles   = "profiles"   // of the process; they show its memory
)

// FeatureQueries is the part of Queries with feature vectors.
const FeatureQueries = "features"

// everything is the right to all surfaces.
const everything = "all"

// parts are the valid parts of each surface. Nil means any.
var parts = map[string][]string{
	Commands:   services(),
	Queries:    append(services(), FeatureQueries),
	SQL:        nil, // any
	Catalog:    {"read", "write", "admin"},
	Operations: {},
	Flags:      {"read", "write"},
	Profiles:   {},
}

// services returns the names of all services.
func services() (names []string) {
	for _, a := range event.Aggregates() {
		names = append(names, a.Service)
	}
	return names
}

// On returns the right to a part of a surface.
func On(surface, part string) Right { return Right(surface + "." + part) }

// Rights are the rights of one caller. The zero value has none.
type Rights struct{ granted []Right }

// Everything returns all rights. Every caller has them if no tokens are configured.
func Everything() Rights { return Rights{[]Right{everything}} }

// ParseRights parses a list of rights: "commands" is a whole surface, "commands.order" a part,
// "sql.web.*" all tables with this prefix, "catalog.read.web.*" the same in the catalog, and "all"
// is everything.
func ParseRights(list []string) (Rights, error) {
	var r Rights
	for _, text := range list {
		surface, part, named := strings.Cut(text, ".")
		known, is := parts[surface]
		switch {
		case text == everything:
		case !is:
			return Rights{},
				fmt.Errorf("unknown right %q: want one of all, commands, queries, sql, catalog, operations, flags, profiles", text)
		case !named:
		case known == nil && part != "":
		case surface == Catalog && slices.Contains(known, kindOf(part)) && !strings.HasSuffix(part, "."):
		case !slices.Contains(known, part):
			return Rights{}, fmt.Errorf("unknown right %q: want a part of %s: %s", text, surface,
				strings.Join(known, ", "))
		}
		r.granted = append(r.granted, Right(text))
	}
	return r, nil
}

// Allow reports whether the rights include a right.
func (r Rights) Allow(wanted Right) bool {
	surface, part, _ := strings.Cut(string(wanted), ".")
	for _, g := range r.granted {
		has, given, limited := strings.Cut(string(g), ".")
		switch {
		case g == everything || g == wanted:
			return true
		case has != surface:
		case !limited:
			return true
		case surface == SQL && part != "" && covers(given, part):
			return true
		case surface == Catalog && rank(given) >= rank(part):
			_, given, limited = strings.Cut(given, ".")
			_, table, ofTable := strings.Cut(part, ".")
			if !limited || ofTable && covers(given, table) {
				return true
			}
		}
	}
	return false
}

// covers reports whether a table is the granted one, or has the granted prefix before a *.
func covers(given, table string) bool {
	start, some := strings.CutSuffix(given, "*")
	return given == table || some && strings.HasPrefix(table, start)
}

// kindOf returns read, write or admin of a part of the catalog, without the table.
func kindOf(part string) string {
	kind, _, _ := strings.Cut(part, ".")
	return kind
}

// rank orders the kinds: a higher one includes the lower ones.
func rank(part string) int { return slices.Index(parts[Catalog], kindOf(part)) }

// Tables returns the tables, and prefixes of tables followed by *, that rights to the catalog are
// limited to.
func (r Rights) Tables() []string {
	var names []string
	for _, g := range r.granted {
		if surface, part, _ := strings.Cut(string(g), "."); surface == Catalog {
			if _, table, limited := strings.Cut(part, "."); limited {
				names = append(names, table)
			}
		}
	}
	return names
}

// Any reports whether there is a right to a surface or to a part of it.
func (r Rights) Any(surface string) bool {
	return slices.ContainsFunc(r.granted, func(g Right) bool {
		has, _, _ := strings.Cut(string(g), ".")
		return g == everything || has == surface
	})
}

// Grant sets the rights of callers, by name. A caller without an entry has none. Call it before the
// listeners start.
func (t *Tokens) Grant(rights map[string]Rights) { t.rights = rights }

// RightsOf returns the rights of a caller.
func (t *Tokens) RightsOf(name string) Rights { return t.rights[name] }

// RightsIn returns the rights of the caller of a request that Guard let pass. A request that no
// Guard has seen has none.
func RightsIn(ctx context.Context) Rights { return callerIn(ctx).rights }

// Need lets requests pass whose caller has the right that they require. It refuses others as
// denied, in the format of their protocol. It must be behind Guard.
func Need(right func(*http.Request) Right, next http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, needed := callerIn(r.Context()), right(r)
		if c.rights.Allow(needed) {
			next.ServeHTTP(w, r)
			return
		}
		why := Denied(c.name, needed)
		if refuse.IsSupported(r) {
			_ = refuse.Write(w, r, connect.NewError(connect.CodePermissionDenied, errors.New(why)))
			return
		}
		http.Error(w, why, http.StatusForbidden)
	})
}

// Denied returns the message for a missing right, which says where rights are configured.
func Denied(name string, needed Right) string {
	if name == "" {
		name = "this caller"
	}
	return fmt.Sprintf("%s does not have the right %q: grant it in auth.rights", name, needed)
}
