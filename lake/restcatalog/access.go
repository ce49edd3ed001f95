package restcatalog

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/auth"
)

// Access says who may do what, and what is given to whom.
type Access struct {
	// Callers knows the tokens. Nil lets everybody in, with the right Admin, which only a door on
	// loopback may.
	Callers *auth.Tokens
	// Rights of callers by their names; those that are not in it have none.
	Rights map[string]Right
	// OfTables are rights to single tables, beyond those to all. They come without keys of the
	// object store, which know no tables.
	OfTables map[string]TableRights
	// TokenLifetime is how long an access token is good that a client gets by OAuth2; zero is an
	// hour.
	TokenLifetime time.Duration
	// ReadKeys and WriteKeys of the object store are handed to clients that ask for credentials:
	// the first to callers with the right Read, the second to those who may write, who get the
	// first where there are none. Empty: clients bring their own.
	ReadKeys, WriteKeys Keys
	// Turns makes the requests of known callers wait for their turn, or turns them away. Nil: all
	// have theirs at once.
	Turns func(http.Handler) http.Handler
}

// Keys are a pair of the object store's.
type Keys struct{ AccessKey, SecretKey string }

func (k Keys) empty() bool { return k == Keys{} }

// Right is what a caller may do. Each has those before it.
type Right int

// The rights there are.
const (
	None  Right = iota
	Read        // lists, metadata, keys to read with
	Write       // makes tables, and commits to them
	Admin       // drops, renames and registers tables; namespaces
)

var rights = []string{"none", "read", "write", "admin"}

func (r Right) String() string { return rights[r] }

// ParseRight reads what String writes.
func ParseRight(s string) (Right, error) {
	if i := slices.Index(rights, s); i >= 0 {
		return Right(i), nil
	}
	return None, fmt.Errorf("%q is none of %s", s, strings.Join(rights, ", "))
}

// TableRights are those of one caller.
type TableRights struct {
	// On is the right to a table.
	On func(name table.Identifier) Right
	// Within reports whether there may be tables with a right in a namespace.
	Within func(namespace table.Identifier) bool
}

const defaultTokenLifetime = time.Hour

func (a *Access) check() error {
	for _, pair := range []Keys{a.ReadKeys, a.WriteKeys} {
		if (pair.AccessKey == "") != (pair.SecretKey == "") {
			return errors.New("an access key and its secret key go together; one of them is missing")
		}
	}
	if a.TokenLifetime < 0 {
		return fmt.Errorf("a lifetime of tokens of %v is below 0", a.TokenLifetime)
	}
	if a.TokenLifetime == 0 {
		a.TokenLifetime = defaultTokenLifetime
	}
	return nil
}

// caller is who sent a request.
type caller struct {
	name   string
	right  Right
	tables TableRights // of some only; zero: of none
}

// some reports whether the caller has rights to single tables.
func (c caller) some() bool { return c.tables.On != nil }

// on returns the right to a table.
func (c caller) on(name table.Identifier) Right {
	if c.some() {
		return max(c.right, c.tables.On(name))
	}
	return c.right
}

// sees reports whether the caller may know of a namespace: of those with tables that it may read,
// and of what those lie in.
func (c caller) sees(namespace table.Identifier) bool {
	return c.right >= Read || c.some() && c.tables.Within(namespace)
}

// mayOn fails if the caller has no right to a table.
func mayOn(r *http.Request, needed Right, name table.Identifier) error {
	if c := callerOf(r); c.on(name) < needed {
		return denied(c, needed)
	}
	return nil
}

// maySee fails if the caller may not know of a namespace.
func maySee(r *http.Request, namespace table.Identifier) error {
	if c := callerOf(r); !c.sees(namespace) {
		return denied(c, Read)
	}
	return nil
}

func denied(c caller, needed Right) error {
	return forbidden("%s", auth.Denied(c.name, auth.On(auth.Catalog, needed.String())))
}

type callerKey struct{}

func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller) // nobody may do nothing
	return c
}

// keys are those that a caller is given.
func (a Access) keys(c caller) Keys {
	switch {
	case c.right >= Write && !a.WriteKeys.empty():
		return a.WriteKeys
	case c.right >= Read:
		return a.ReadKeys
	}
	return Keys{}
}

const tokenPath = "/v1/oauth/tokens" //nolint:gosec // a path

// admit determines whose request it is, and puts that into its context.
func (s *Server) admit(r *http.Request) (*http.Request, caller, error) {
	c := caller{right: Admin}
	access := s.config.Access
	switch {
	case access.Callers == nil:
	case r.Method == http.MethodPost && r.URL.Path == tokenPath: // where one proves who one is
		c.right = None
	default:
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") { // some clients repeat token_type in lower case
			return r, caller{}, notAuthorized()
		}
		name, _, err := access.Callers.Access(token)
		if errors.Is(err, auth.ErrExpired) { // clients of a kind get themselves a new one then
			return r, caller{}, &failure{status: 419, kind: "AuthenticationTimeoutException", message: "the access token has expired; get a new one"}
		}
		if err != nil {
			return r, caller{}, notAuthorized()
		}
		c = caller{name: name, right: access.Rights[name], tables: access.OfTables[name]}
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c)), c, nil
}

func notAuthorized() error {
	return &failure{status: http.StatusUnauthorized, kind: "NotAuthorizedException", message: "send a token that this catalog knows: Authorization: Bearer TOKEN"}
}

// to lets those through who have a right: to all tables, or to the one of the path.
func to(needed Right, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c := callerOf(r)
		if c.right < needed && (r.PathValue("table") == "" || c.on(tableOf(r)) < needed) {
			return denied(c, needed)
		}
		return h(w, r)
	}
}

// toSome lets those through, too, who have rights to single tables: the handler asks for them by
// the names that it finds.
func toSome(needed Right, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if c := callerOf(r); c.right < needed && !c.some() {
			return denied(c, needed)
		}
		return h(w, r)
	}
}

func forbidden(format string, args ...any) error {
	return &failure{status: http.StatusForbidden, kind: "ForbiddenException", message: fmt.Sprintf(format, args...)}
}
