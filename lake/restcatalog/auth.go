package restcatalog

import (
	"crypto/subtle"
	"encoding/json"
	"mime"
	"net/http"
	"strings"
)

// admit tells whose request it is, and whether it is let in.
func (s *Server) admit(r *http.Request) (caller string, in bool) {
	if s.config.Authenticate == nil || r.Method == http.MethodPost && r.URL.Path == "/v1/oauth/tokens" {
		return "", true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") { // some clients repeat token_type in lower case
		return "", false
	}
	return s.config.Authenticate(token)
}

// getToken is OAuth2's client credentials flow, for clients that know no other: the client's id is a caller's name and its
// secret the caller's token, which is also the token that it gets. So there is one list of callers, a token is good until it
// is taken from that list, and any replica of this server knows it.
func (s *Server) getToken(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, kind, why string) {
		w.Header().Set("Content-Type", "application/json")
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="catalog"`)
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": kind, "error_description": why}) // the client may have left
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		refuse(http.StatusBadRequest, "invalid_request", "the body must be application/x-www-form-urlencoded")
		return
	}
	if err := r.ParseForm(); err != nil {
		refuse(http.StatusBadRequest, "invalid_request", "the form cannot be read")
		return
	}
	if s.config.Authenticate == nil {
		refuse(http.StatusBadRequest, "invalid_request", "this catalog asks for no token")
		return
	}
	if grant := r.PostForm.Get("grant_type"); grant != "client_credentials" {
		refuse(http.StatusBadRequest, "unsupported_grant_type", "grant_type: only client_credentials is served")
		return
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	caller, known := s.config.Authenticate(secret)
	if !known || id != "" && subtle.ConstantTimeCompare([]byte(id), []byte(caller)) != 1 {
		refuse(http.StatusUnauthorized, "invalid_client", "no client has this id and secret")
		return
	}
	_ = reply(w, struct { // strings can be encoded
		Token  string `json:"access_token"`
		Type   string `json:"token_type"`
		Issued string `json:"issued_token_type"`
		Scope  string `json:"scope,omitempty"`
	}{secret, "bearer", "urn:ietf:params:oauth:token-type:access_token", r.PostForm.Get("scope")})
}
