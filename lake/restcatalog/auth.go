package restcatalog

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"time"

	"github.com/millrace/millrace/internal/auth"
)

// oauthError is an error in OAuth2's form, which differs from the catalog's other errors.
type oauthError struct {
	status int
	kind   string
	why    string
}

// Values of the OAuth2 specification, RFC 6749 and RFC 8693.
const (
	grantCredentials = "client_credentials"
	grantExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessToken      = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // a kind of token
)

// unknownClient does not say which of the two is wrong, so that ids cannot be guessed.
var unknownClient = &oauthError{http.StatusUnauthorized, "invalid_client", "unknown client id or wrong secret"}

// getToken is OAuth2's token endpoint. It issues an access token for client credentials (a caller's
// name and its own token) or in exchange for a valid access token. An exchanged token expires with
// the original, so a stolen one cannot be kept alive. Tokens are signed rather than stored, so any
// replica accepts tokens of another.
func (s *Server) getToken(w http.ResponseWriter, r *http.Request) {
	name, until, refused := s.client(r)
	if refused == nil {
		if token, known := s.config.Access.Callers.Issue(name, until); known {
			expiresIn := int(max(0, time.Until(until).Round(time.Second)) / time.Second)
			_ = reply(w, struct { // strings can be encoded
				Token   string `json:"access_token"`
				Type    string `json:"token_type"`
				Expires int    `json:"expires_in"`
				Issued  string `json:"issued_token_type"`
				Scope   string `json:"scope,omitempty"`
			}{token, "bearer", expiresIn, accessToken, r.PostForm.Get("scope")})
			return
		}
		// The list of callers is read again while the server runs.
		refused = &oauthError{http.StatusUnauthorized, "invalid_client", "the client has been removed"}
	}
	w.Header().Set("Content-Type", "application/json")
	if refused.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="catalog"`)
	}
	w.WriteHeader(refused.status)
	// The client may have disconnected.
	_ = json.NewEncoder(w).Encode(map[string]string{"error": refused.kind, "error_description": refused.why})
}

// client authenticates a token request. It returns the caller and the latest expiry of the new
// token.
func (s *Server) client(r *http.Request) (name string, until time.Time, refused *oauthError) {
	until = time.Now().Add(s.config.Access.TokenLifetime)
	invalid := func(why string) (string, time.Time, *oauthError) {
		return "", time.Time{}, &oauthError{http.StatusBadRequest, "invalid_request", why}
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return invalid("the body must be application/x-www-form-urlencoded")
	}
	if err := r.ParseForm(); err != nil {
		return invalid("cannot parse the form")
	}
	// A catalog without callers has nothing to issue a token for.
	callers := s.config.Access.Callers
	if callers == nil {
		return invalid("this catalog does not require tokens")
	}
	switch r.PostForm.Get("grant_type") {
	case grantCredentials:
		id, secret, basic := r.BasicAuth()
		if !basic {
			id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
		}
		// The secret alone identifies the caller. An id is optional but must match.
		name, known := callers.Caller(secret)
		if !known || id != "" && subtle.ConstantTimeCompare([]byte(id), []byte(name)) != 1 {
			return "", time.Time{}, unknownClient
		}
		return name, until, nil
	case grantExchange: // Java's client renews its token this way
		// Delegation is not supported.
		if r.PostForm.Get("actor_token") != "" {
			return invalid("actor_token: delegation is not supported")
		}
		if kind := r.PostForm.Get("subject_token_type"); kind != accessToken {
			return invalid("subject_token_type: must be " + accessToken)
		}
		name, first, err := callers.Access(r.PostForm.Get("subject_token"))
		// Java's client authenticates with its credentials once its token has expired.
		if id, secret, basic := r.BasicAuth(); basic {
			owner, known := callers.Caller(secret)
			if known && owner == name && id == name && (err == nil || errors.Is(err, auth.ErrExpired)) {
				return name, until, nil
			}
			return "", time.Time{}, unknownClient
		}
		if err != nil {
			return "", time.Time{}, &oauthError{http.StatusBadRequest, "invalid_grant", "subject_token: " + err.Error()}
		}
		// Never extend the original token's lifetime.
		if !first.IsZero() && first.Before(until) {
			until = first
		}
		return name, until, nil
	}
	return "", time.Time{}, &oauthError{
		http.StatusBadRequest, "unsupported_grant_type", "grant_type: must be client_credentials or token-exchange",
	}
}
