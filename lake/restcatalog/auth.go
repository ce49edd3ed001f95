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

// refusal is an error in OAuth2's form, which differs from the catalog's other errors.
type refusal struct {
	status int
	kind   string
	why    string
}

const (
	grantCredentials = "client_credentials"
	grantExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessToken      = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // a kind of token
)

// getToken is OAuth2's token endpoint. It issues an access token for client credentials (a caller's
// name and its own token) or in exchange for a valid access token. An exchanged token expires with
// the original, so a stolen one cannot be kept alive. Tokens are signed rather than stored, so any
// replica accepts tokens of another.
func (s *Server) getToken(w http.ResponseWriter, r *http.Request) {
	name, until, refused := s.client(r)
	if refused == nil {
		if token, known := s.config.Access.Callers.Issue(name, until); known {
			_ = reply(w, struct { // strings can be encoded
				Token   string `json:"access_token"`
				Type    string `json:"token_type"`
				Expires int    `json:"expires_in"`
				Issued  string `json:"issued_token_type"`
				Scope   string `json:"scope,omitempty"`
			}{token, "bearer", int(max(0, time.Until(until).Round(time.Second)) / time.Second), accessToken, r.PostForm.Get("scope")})
			return
		}
		// The list of callers is read again while the server runs.
		refused = &refusal{http.StatusUnauthorized, "invalid_client", "it was taken from the callers just now"}
	}
	w.Header().Set("Content-Type", "application/json")
	if refused.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="catalog"`)
	}
	w.WriteHeader(refused.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": refused.kind, "error_description": refused.why}) // the client may have left
}

// client authenticates a token request. It returns the caller and the latest expiry of the new
// token.
func (s *Server) client(r *http.Request) (name string, until time.Time, refused *refusal) {
	until = time.Now().Add(s.config.Access.TokenLifetime)
	invalid := func(why string) (string, time.Time, *refusal) {
		return "", time.Time{}, &refusal{http.StatusBadRequest, "invalid_request", why}
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return invalid("the body must be application/x-www-form-urlencoded")
	}
	if err := r.ParseForm(); err != nil {
		return invalid("the form cannot be read")
	}
	callers := s.config.Access.Callers
	if callers == nil {
		return invalid("this catalog asks for no token")
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
			return "", time.Time{}, &refusal{http.StatusUnauthorized, "invalid_client", "no client has this id and secret"}
		}
		return name, until, nil
	case grantExchange: // Java's client renews its token this way
		// Delegation is not supported.
		if r.PostForm.Get("actor_token") != "" {
			return invalid("actor_token: nobody acts for another here")
		}
		if kind := r.PostForm.Get("subject_token_type"); kind != accessToken {
			return invalid("subject_token_type: only " + accessToken + " is served")
		}
		name, first, err := callers.Access(r.PostForm.Get("subject_token"))
		// Java's client authenticates with its credentials once its token has expired.
		if id, secret, basic := r.BasicAuth(); basic {
			if owner, known := callers.Caller(secret); known && owner == name && id == name && (err == nil || errors.Is(err, auth.ErrExpired)) {
				return name, until, nil
			}
			return "", time.Time{}, &refusal{http.StatusUnauthorized, "invalid_client", "no client has this id and secret"}
		}
		if err != nil {
			return "", time.Time{}, &refusal{http.StatusBadRequest, "invalid_grant", "subject_token: " + err.Error()}
		}
		// Never extend the original token's lifetime.
		if !first.IsZero() && first.Before(until) {
			until = first
		}
		return name, until, nil
	}
	return "", time.Time{}, &refusal{http.StatusBadRequest, "unsupported_grant_type", "grant_type: client_credentials and token-exchange are served"}
}
