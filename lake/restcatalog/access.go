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

// Access configures authentication, rights, and the credentials that clients get.
type Access struct {
	// Callers has the tokens of callers. If it is nil, every request is accepted with the right
	// Admin, which is only acceptable on a loopback listener.
	Callers *auth.Tokens
	// Rights has the callers' rights by name. Callers that are missing have none.
	Rights map[string]Right
	// Tables has rights to single tables, by caller, in addition to Rights. They never come with
	// keys of the object store, since keys cannot be limited to tables.
	Tables map[string]TableRights
	// TokenLifetime is the lifetime of access tokens issued by OAuth2; 0 means one hour.
	TokenLifetime time.Duration
	// ReadKeys and WriteKeys are keys of the object store for clients that request credentials.
	// Callers with the right Read get ReadKeys. Callers that may write get WriteKeys, or ReadKeys
	// if those are empty. If both are empty, clients must bring their own.
	ReadKeys, WriteKeys Keys
	// Limit is middleware that limits concurrent requests of authenticated callers. Nil means no
	// limit.
	Limit func(http.Handler) http.Handler
}

// Keys are an access key of the object store and its secret.
type Keys struct{ AccessKey, SecretKey string }

// empty reports whether there are no keys.
func (k Keys) empty() bool { return k == Keys{} }

// Right is what a caller may do. Each right includes the lower ones.
type Right int

// The rights, in ascending order.
const (
	None  Right = iota
	Read        // list and load tables; get read keys
	Write       // create tables and commit to them
	Admin       // drop, rename and register tables; change namespaces
)

// rights are the names of the rights, by value.
var rights = []string{"none", "read", "write", "admin"}

// String returns the name of a right, as the configuration has it.
func (r Right) String() string { return rights[r] }

// ParseRight parses the output of String.
func ParseRight(s string) (Right, error) {
	if i := slices.Index(rights, s); i >= 0 {
		return Right(i), nil
	}
	return None, fmt.Errorf("right %q is not one of %s", s, strings.Join(rights, ", "))
}

// TableRights are one caller's rights to single tables.
type TableRights struct {
	// On returns the right to a table.
	On func(name table.Identifier) Right
	// Within reports whether the caller may have a right to some table in a namespace.
	Within func(namespace table.Identifier) bool
}

// defaultTokenLifetime is used if the configuration has no lifetime.
const defaultTokenLifetime = time.Hour

// check validates the settings and sets defaults.
func (a *Access) check() error {
	// Half a pair would only fail at the client, with an error of the object store.
	for _, pair := range []Keys{a.ReadKeys, a.WriteKeys} {
		if (pair.AccessKey == "") != (pair.SecretKey == "") {
			return errors.New("set both the access key and the secret key, or neither")
		}
	}
	if a.TokenLifetime < 0 {
		return fmt.Errorf("token lifetime %v is below 0", a.TokenLifetime)
	}
	if a.TokenLifetime == 0 {
		a.TokenLifetime = defaultTokenLifetime
	}
	return nil
}

// caller is the authenticated sender of a request.
type caller struct {
	name   string
	right  Right
	tables TableRights // rights to single tables; zero if there are none
}

// hasTableRights reports whether the caller has rights to single tables.
func (c caller) hasTableRights() bool { return c.tables.On != nil }

// rightOn returns the caller's right to a table.
func (c caller) rightOn(name table.Identifier) Right {
	if c.hasTableRights() {
		return max(c.right, c.tables.On(name))
	}
	return c.right
}

// sees reports whether the caller may see a namespace: it has tables that the caller may read, or
// is a parent of such a namespace.
func (c caller) sees(namespace table.Identifier) bool {
	return c.right >= Read || c.hasTableRights() && c.tables.Within(namespace)
}

// requireOn returns an error if the caller lacks a right to a table.
func requireOn(r *http.Request, needed Right, name table.Identifier) error {
	if c := callerOf(r); c.rightOn(name) < needed {
		return denied(c, needed)
	}
	return nil
}

// requireVisible returns an error if the caller may not see a namespace.
func requireVisible(r *http.Request, namespace table.Identifier) error {
	if c := callerOf(r); !c.sees(namespace) {
		return denied(c, Read)
	}
	return nil
}

// denied returns the error for a missing right.
func denied(c caller, needed Right) error {
	return forbidden("%s", auth.Denied(c.name, auth.On(auth.Catalog, needed.String())))
}

// callerKey is the context key of the caller.
type callerKey struct{}

// callerOf returns the caller that authenticate has found.
func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller) // the zero caller has no rights
	return c
}

// keys returns the object store keys that a caller gets.
func (a Access) keys(c caller) Keys {
	// Rights to single tables are not enough, because keys open the whole bucket.
	switch {
	case c.right >= Write && !a.WriteKeys.empty():
		return a.WriteKeys
	case c.right >= Read:
		return a.ReadKeys
	}
	return Keys{}
}

// tokenPath is the path of the OAuth2 token endpoint in the specification.
const tokenPath = "/v1/oauth/tokens" //nolint:gosec // a path

// authenticate authenticates a request and adds the caller to its context.
func (s *Server) authenticate(r *http.Request) (*http.Request, caller, error) {
	c := caller{right: Admin}
	access := s.config.Access
	switch {
	// Without configured callers, everyone is Admin. See Access.Callers.
	case access.Callers == nil:
	case r.Method == http.MethodPost && r.URL.Path == tokenPath: // authenticates in its body
		c.right = None
	default:
		// The Authorization header is "Bearer TOKEN".
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") { // some clients send token_type, which is lower case
			return r, caller{}, notAuthorized()
		}
		// Accepts both callers' own tokens and issued access tokens.
		name, _, err := access.Callers.Access(token)
		if errors.Is(err, auth.ErrExpired) { // some clients then request a new token
			return r, caller{}, &apiError{
				status: 419, kind: "AuthenticationTimeoutException",
				message: "the access token has expired; request a new one",
			}
		}
		if err != nil {
			return r, caller{}, notAuthorized()
		}
		// Callers without an entry have no rights.
		c = caller{name: name, right: access.Rights[name], tables: access.Tables[name]}
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c)), c, nil
}

// notAuthorized returns the error for a request without a valid token.
func notAuthorized() error {
	return &apiError{
		status: http.StatusUnauthorized, kind: "NotAuthorizedException",
		message: "missing or unknown token; send Authorization: Bearer TOKEN",
	}
}

// require requires a right to all tables, or to the table in the path.
func require(needed Right, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c := callerOf(r)
		// Without a table in the path, only a right to all tables counts.
		if c.right < needed && (r.PathValue("table") == "" || c.rightOn(tableOf(r)) < needed) {
			return denied(c, needed)
		}
		return h(w, r)
	}
}

// requireSome requires a right to all tables, or any right to single tables. In the latter case the
// handler must check each table that it finds in the request.
func requireSome(needed Right, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if c := callerOf(r); c.right < needed && !c.hasTableRights() {
			return denied(c, needed)
		}
		return h(w, r)
	}
}

// forbidden returns the error for a change that the catalog refuses, whoever requests it.
func forbidden(format string, args ...any) error {
	return &apiError{status: http.StatusForbidden, kind: "ForbiddenException", message: fmt.Sprintf(format, args...)}
}
