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

// Right is what one call takes: a surface, and behind a dot the part of it that is meant.
type Right string

// Surfaces are what rights are given on, each whole or in parts. This is the one definition; every
// door asks by it.
const (
	Commands   = "commands"   // parts: services
	Queries    = "queries"    // parts: services
	SQL        = "sql"        // parts: tables, as queries address them
	Catalog    = "catalog"    // parts: read, write, admin, each with those before it; and of one table: read.web.clicks
	Operations = "operations" // status, verify, failpoints
	Profiles   = "profiles"   // of the process: they hold what is in its memory
)

// everything is the right to everything.
const everything = "all"

var parts = map[string][]string{
	Commands:   services(),
	Queries:    services(),
	SQL:        nil, // any
	Catalog:    {"read", "write", "admin"},
	Operations: {},
	Profiles:   {},
}

func services() (names []string) {
	for _, a := range event.Aggregates() {
		names = append(names, a.Service)
	}
	return names
}

// On returns the right to a part of a surface.
func On(surface, part string) Right { return Right(surface + "." + part) }

// Rights are those of one caller. The zero Rights are none.
type Rights struct{ granted []Right }

// Everything returns what everybody may do where nobody is asked for a token.
func Everything() Rights { return Rights{[]Right{everything}} }

// ParseRights reads a list of rights: "commands" is the whole surface, "commands.order" a part,
// "sql.web.*" each table whose name begins so, "catalog.read.web.*" these in the catalog, "all"
// everything.
func ParseRights(list []string) (Rights, error) {
	var r Rights
	for _, text := range list {
		surface, part, named := strings.Cut(text, ".")
		known, is := parts[surface]
		switch {
		case text == everything:
		case !is:
			return Rights{}, fmt.Errorf("%q is none of all, commands, queries, sql, catalog, operations, profiles", text)
		case !named:
		case known == nil && part != "":
		case surface == Catalog && slices.Contains(known, kindOf(part)) && !strings.HasSuffix(part, "."):
		case !slices.Contains(known, part):
			return Rights{}, fmt.Errorf("%q: parts of %s are: %s", text, surface, strings.Join(known, ", "))
		}
		r.granted = append(r.granted, Right(text))
	}
	return r, nil
}

// Allow reports whether a right is among those that were given.
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

// covers reports whether a table's name is the one that was given, or begins as that does before
// its *.
func covers(given, table string) bool {
	start, some := strings.CutSuffix(given, "*")
	return given == table || some && strings.HasPrefix(table, start)
}

// kindOf returns what may be done in the catalog, without the table with which.
func kindOf(part string) string {
	kind, _, _ := strings.Cut(part, ".")
	return kind
}

func rank(part string) int { return slices.Index(parts[Catalog], kindOf(part)) }

// Tables returns the names of the tables, and the beginnings of names with a * behind them, that a
// right to the catalog was given of.
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

// Any reports whether there is a right to a surface or a part of it.
func (r Rights) Any(surface string) bool {
	return slices.ContainsFunc(r.granted, func(g Right) bool {
		has, _, _ := strings.Cut(string(g), ".")
		return g == everything || has == surface
	})
}

// Grant says what callers may do, by their names; those that are not in it, nothing. Call it before
// the doors open.
func (t *Tokens) Grant(rights map[string]Rights) { t.rights = rights }

// RightsOf are those of a caller.
func (t *Tokens) RightsOf(name string) Rights { return t.rights[name] }

// RightsIn are those of the caller of a request that Guard let in. A request that no guard saw has
// none.
func RightsIn(ctx context.Context) Rights { return callerIn(ctx).rights }

// Need lets requests through whose caller has the right that they take. Others are answered in the
// manner of their protocol, as denied. It is behind Guard.
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

// Denied tells a caller what is missing, and where it is given.
func Denied(name string, needed Right) string {
	if name == "" {
		name = "this caller"
	}
	return fmt.Sprintf("this takes the right %q, which %s does not have (auth.rights)", needed, name)
}
