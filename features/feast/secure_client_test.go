package feast

import (
	_ "embed"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/features/serving"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/test/servers/process"
)

//go:embed testdata/secure_client.py
var secureClient string

// TestFeastClientWithTokens: an unmodified Feast client with the generated settings reads from both
// stores over TLS, with the token in its environment. An unknown token and a caller without the right get
// the errors of these.
func TestFeastClientWithTokens(t *testing.T) {
	process.SkipHeavy(t, "Feast")
	home, err := process.InstallDir("feast")
	if err != nil {
		process.SkipOrFail(t, "Feast", err)
	}
	const reader, stranger, unknown = "a-token-of-the-reader", "a-token-of-a-stranger", "a-token-of-nobody-here"
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("reader:"+reader+"\nstranger:"+stranger+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	rights := map[string]auth.Rights{}
	for name, right := range map[string]string{"reader": "queries.features", "stranger": "queries.order"} {
		if rights[name], err = auth.ParseRights([]string{right}); err != nil {
			t.Fatal(err)
		}
	}
	tokens.Grant(rights)
	need := func(next http.Handler) http.Handler {
		return auth.Need(func(*http.Request) auth.Right { return auth.On(auth.Queries, auth.FeatureQueries) }, next)
	}
	serve := func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	online := serve(serving.FeastErrors(tokens.Guard(serving.NewFeast(vectors(t, groups(), facts()), need), "/health")))
	mux := http.NewServeMux()
	mux.Handle(Handler(config(t)))
	offline := serve(tokens.Guard(need(mux)))

	r := Repository{Project: "test", Registry: "registry.db", Online: online.URL, TLS: true,
		Offline: offline.Listener.Addr().String(), Tokens: true}
	registry, err := Registry(r.Project, groups())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := r.Settings()
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: online.Certificate().Raw})
	for _, c := range []struct{ token, online, offline string }{
		{reader, "", ""},
		{unknown, "401", "Unauthenticated"},
		{stranger, "403", "queries.features"},
	} {
		t.Run(strings.TrimPrefix(c.token, "a-token-of-"), func(t *testing.T) {
			runClient(t, home, map[string]string{"client.py": secureClient, "registry.db": string(registry),
				"feature_store.yaml": settings, certificate: string(ca)},
				tokenVariable+"="+c.token, "WANT_ONLINE="+c.online, "WANT_OFFLINE="+c.offline)
		})
	}
}
