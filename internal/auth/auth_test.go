package auth_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/polltest"
)

const (
	anna = "anna-0123456789-0123456789"
	bert = "bert-0123456789-0123456789"
)

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, content, want string }{
		{"no colon", "anna", "line 1"},
		{"no name", "# ok\n:" + anna, "line 2"},
		{"short token", "anna:secret", `"anna"`},
		{"nobody", "# nobody yet\n", "no callers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := auth.Open(file(t, c.content), slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want it to say %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	tokens, err := auth.Open(file(t, "anna:"+anna+"\n\n# a comment\nbert:"+bert+"\n"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	caller := ""
	handler := tokens.Guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { caller = auth.CallerOf(r.Context()) }), "/healthz")
	for _, c := range []struct {
		name, path, header string
		status             int
		caller             string
	}{
		{"a token", "/x", "Bearer " + anna, http.StatusOK, "anna"},
		{"another's token", "/x", "Bearer " + bert, http.StatusOK, "bert"},
		{"none", "/x", "", http.StatusUnauthorized, ""},
		{"a wrong one", "/x", "Bearer " + anna + "x", http.StatusUnauthorized, ""},
		{"another scheme", "/x", "Basic " + anna, http.StatusUnauthorized, ""},
		{"an open path", "/healthz", "", http.StatusOK, ""},
		{"a path that only looks open", "/healthz/", "", http.StatusUnauthorized, ""},
	} {
		caller = ""
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, c.path, nil)
		if c.header != "" {
			r.Header.Set("Authorization", c.header)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.status || caller != c.caller {
			t.Errorf("%s: status %d, caller %q; want %d, %q", c.name, w.Code, caller, c.status, c.caller)
		}
	}

	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/s/m", strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Connect-Protocol-Version", "1")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if !strings.Contains(w.Body.String(), connect.CodeUnauthenticated.String()) {
		t.Errorf("a Connect client is told %q", w.Body)
	}
}

// TestTokensAreReloaded adds and removes a token while the listener is open.
func TestTokensAreReloaded(t *testing.T) {
	t.Parallel()
	path := file(t, "anna:"+anna+"\n")
	var complaints complaints
	tokens, err := auth.Open(path, slog.New(slog.NewTextHandler(&complaints, nil)))
	if err != nil {
		t.Fatal(err)
	}
	write := func(content string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write("bert:"+bert+"\n", time.Now().Add(time.Hour))
	polltest.Until(t, "bert is known and anna is not", func() bool {
		_, a := tokens.Caller(anna)
		_, b := tokens.Caller(bert)
		return b && !a
	})
	write("damaged", time.Now().Add(2*time.Hour))
	polltest.Until(t, "a damaged file is complained about", func() bool {
		_, known := tokens.Caller(bert)
		return complaints.Load() > 0 && known
	})
}

// complaints counts lines of a log.
type complaints struct{ atomic.Int64 }

func (c *complaints) Write(b []byte) (int, error) {
	c.Add(1)
	return len(b), nil
}
