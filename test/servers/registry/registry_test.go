package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/test/servers/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestKillAndPause checks that schemas survive kill -9, and that a frozen registry answers all
// requests after it is resumed.
func TestKillAndPause(t *testing.T) {
	t.Parallel()
	var s registry.Server
	begun := time.Now()
	url := s.URL(t)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	mb, err := s.ResidentMB()
	t.Logf("ready in %v, %d MB (%v)", time.Since(begun).Round(time.Millisecond), mb, err)

	registered := mustCall(t, t.Context(), http.MethodPost, url+"/subjects/a-value/versions", `{"schema":"\"string\""}`)
	if !strings.Contains(registered, `"id"`) {
		t.Fatalf("registering answered %s", registered)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("started again in %v", time.Since(begun).Round(time.Millisecond))
	if got := mustCall(t, t.Context(), http.MethodGet, url+"/subjects", ""); got != `["a-value"]` {
		t.Errorf("after kill -9 the subjects are %s", got)
	}

	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := call(brief, http.MethodGet, url+"/subjects", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a frozen registry answered, or failed with %v", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	mustCall(t, t.Context(), http.MethodGet, url+"/subjects", "")
}

func mustCall(t *testing.T, ctx context.Context, method, url, body string) string { //nolint:revive // the test leads everywhere
	t.Helper()
	answer, err := call(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func call(ctx context.Context, method, url, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close() //nolint:errcheck // it was read to its end
	all, err := io.ReadAll(answer.Body)
	return string(all), err
}
