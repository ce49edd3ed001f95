package restcatalog_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go/catalog/rest"

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/lake/restcatalog"
)

const anna = "anna-0123456789-0123456789"

// guarded returns a fixture whose server requires tokens.
func guarded(t testing.TB) *fixture {
	t.Helper()
	p := onSQLite(t)
	file := filepath.Join(t.TempDir(), "tokens")
	content := "anna:" + anna + "\n"
	for _, name := range []string{"bert", "carl", "dora"} {
		content += name + ":" + tokenOf(name) + "\n"
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.Open(file, p.Logger)
	if err != nil {
		t.Fatal(err)
	}
	p.Access.Callers = tokens
	p.Access.Rights = map[string]restcatalog.Right{"anna": restcatalog.Admin, "bert": restcatalog.Read, "carl": restcatalog.Write} // and dora nothing, for she is not named
	return p
}

func tokenOf(name string) string { return name + "-0123456789-0123456789" }

// Only requests with a valid token are served, and no token appears in the log.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	p := guarded(t).serve(t)
	for _, path := range []string{"/v1/config", "/v1/namespaces", "/v1/nothing", "/v1/oauth/tokens"} { // GET
		for name, header := range map[string]string{"none": "", "wrong": "Bearer " + anna + "x", "another scheme": "Basic " + anna, "empty": "Bearer "} {
			a := p.call(t, http.MethodGet, path, nil, "Authorization", header)
			if a.status != http.StatusUnauthorized || a.kind(t) != "NotAuthorizedException" || a.header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s, token %s: %d %s", path, name, a.status, a.body)
			}
		}
	}
	p.must(t, http.StatusOK, http.MethodGet, "/v1/config", nil, "Authorization", "bearer "+anna)
	if !strings.Contains(p.log.String(), "caller=anna") {
		t.Error("the log does not name the caller")
	}
	if strings.Contains(p.log.String(), anna) {
		t.Error("the log shows a token")
	}
}

// Access tokens are issued for credentials and in exchange for others, and expire.
func TestOAuth2(t *testing.T) {
	t.Parallel()
	p := guarded(t).serve(t)
	const form = "application/x-www-form-urlencoded"
	ask := func(body string, headers ...string) answer {
		return p.call(t, http.MethodPost, "/v1/oauth/tokens", body, append([]string{"Content-Type", form}, headers...)...)
	}
	var token struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Scope   string `json:"scope"`
		Expires int    `json:"expires_in"`
		Issued  string `json:"issued_token_type"`
	}
	ask("grant_type=client_credentials&client_id=anna&client_secret="+anna+"&scope=catalog").into(t, &token)
	if token.Type != "bearer" || token.Scope != "catalog" || token.Expires != 3600 || token.Token == anna {
		t.Errorf("%+v", token)
	}
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces", nil, "Authorization", "Bearer "+token.Token)
	other := guarded(t).serve(t) // a replica, with the same file
	other.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces", nil, "Authorization", "Bearer "+token.Token)
	const exchange = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token="
	first, issued := token.Token, "&subject_token_type="+token.Issued
	ask(exchange+first+issued).into(t, &token)
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces", nil, "Authorization", "Bearer "+token.Token)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("anna", anna)
	basic := r.Header.Get("Authorization")
	if a := ask("grant_type=client_credentials", "Authorization", basic); a.status != http.StatusOK {
		t.Errorf("Basic: %d %s", a.status, a.body)
	}
	for name, c := range map[string]struct {
		a      answer
		status int
		says   string
	}{
		"wrong secret":      {ask("grant_type=client_credentials&client_id=anna&client_secret=no"), 401, "invalid_client"},
		"another's":         {ask("grant_type=client_credentials&client_id=bert&client_secret=" + anna), 401, "invalid_client"},
		"nothing":           {ask("grant_type=client_credentials"), 401, "invalid_client"},
		"another grant":     {ask("grant_type=password&client_id=anna&client_secret=" + anna), 400, "unsupported_grant_type"},
		"not a form":        {ask("{}", "Content-Type", "application/json"), 400, "invalid_request"},
		"a broken form":     {ask("grant_type=%"), 400, "invalid_request"},
		"a token of nobody": {ask(exchange + "x" + issued), 400, "invalid_grant"},
		"a token for more":  {ask(exchange + first + issued + "&actor_token=" + first), 400, "actor_token"},
		"a token of a kind": {ask(exchange + first + "&subject_token_type=jwt"), 400, "subject_token_type"},
		"secret in path":    {p.call(t, http.MethodPost, "/v1/oauth/tokens?grant_type=client_credentials&client_id=anna&client_secret="+anna, "", "Content-Type", form), 400, "unsupported_grant_type"},
	} {
		if c.a.status != c.status || !strings.Contains(c.a.body, c.says) || strings.Contains(c.a.body, anna) {
			t.Errorf("%s: %d %s", name, c.a.status, c.a.body)
		}
	}

	expired, _ := p.Access.Callers.Issue("anna", time.Now().Add(-time.Second))
	if a := p.must(t, 419, http.MethodGet, "/v1/config", nil, "Authorization", "Bearer "+expired); a.kind(t) != "AuthenticationTimeoutException" {
		t.Errorf("%s", a.body)
	}
	if a := ask(exchange + expired + issued); a.status != 400 || !strings.Contains(a.body, "invalid_grant") {
		t.Errorf("an expired token renewed: %d %s", a.status, a.body)
	}

	// An exchanged token expires with the original, however often it is exchanged. An exchange with
	// the secret starts anew.
	short, _ := p.Access.Callers.Issue("anna", time.Now().Add(2*time.Minute))
	again := short
	for range 3 {
		ask(exchange+again+issued).into(t, &token)
		if again = token.Token; token.Expires > 120 {
			t.Errorf("a token of two minutes was exchanged for one of %d seconds", token.Expires)
		}
	}
	_, end, err1 := p.Access.Callers.Access(short)
	_, last, err2 := p.Access.Callers.Access(again)
	if err1 != nil || err2 != nil || !last.Equal(end) {
		t.Errorf("it expires at %v, and the first at %v; %v, %v", last, end, err1, err2)
	}
	for name, subject := range map[string]string{"good": short, "expired": expired} {
		if ask(exchange+subject+issued, "Authorization", basic).into(t, &token); token.Expires != 3600 {
			t.Errorf("a %s token and the secret: %d seconds", name, token.Expires)
		}
	}
	r.SetBasicAuth("bert", tokenOf("bert"))
	if a := ask(exchange+short+issued, "Authorization", r.Header.Get("Authorization")); a.status != http.StatusUnauthorized {
		t.Errorf("another's token and one's own secret: %d %s", a.status, a.body)
	}

	// iceberg-go's client does this by itself.
	c := p.client(t, rest.WithCredential("anna:"+anna))
	if _, err := c.ListNamespaces(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := rest.NewCatalog(context.WithoutCancel(t.Context()), "test", p.url, rest.WithCredential("anna:wrong")); !errors.Is(err, rest.ErrOAuthError) {
		t.Errorf("error %v", err)
	}
	if _, err := rest.NewCatalog(context.WithoutCancel(t.Context()), "test", p.url); !errors.Is(err, rest.ErrUnauthorized) {
		t.Errorf("error %v", err)
	}
	open := onSQLite(t).serve(t)
	if a := open.call(t, http.MethodPost, "/v1/oauth/tokens", "grant_type=client_credentials", "Content-Type", form); a.status != http.StatusBadRequest {
		t.Errorf("open: %d %s", a.status, a.body)
	}
}
