package registry_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// query asks the shared registry by plain HTTP, without our code.
func query(tb testing.TB, method, path, body string) string {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, shared.URL(tb)+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	answer, err := plainHTTP.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read to its end
	all, err := io.ReadAll(answer.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(all)
}

func queryInto(tb testing.TB, into any, method, path, body string) {
	tb.Helper()
	answer := query(tb, method, path, body)
	if err := json.Unmarshal([]byte(answer), into); err != nil {
		tb.Fatalf("%s %s returned %s: %v", method, path, answer, err)
	}
}

// plainHTTP keeps no idle connections, whose goroutines would outlive the tests.
var plainHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
