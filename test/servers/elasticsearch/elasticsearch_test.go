package elasticsearch_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/test/servers/elasticsearch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func call(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it has been read
	answerBody, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode >= 300 {
		t.Fatalf("%s %s: %s, %v: %s", method, url, answer.Status, err, answerBody)
	}
	return string(bytes.TrimSpace(answerBody))
}

// TestRestartAfterKill checks that acknowledged writes survive kill -9, and that words are
// found by their stems, as with a real distribution.
func TestRestartAfterKill(t *testing.T) {
	t.Parallel()
	var s elasticsearch.Server
	begun := time.Now()
	url := s.URL(t)
	started := time.Since(begun)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	mb, err := s.ResidentMB()
	if err != nil || mb == 0 {
		t.Errorf("%d MB resident, %v", mb, err)
	}
	t.Logf("ready in %v, %d MB", started.Round(time.Millisecond), mb)

	call(t, http.MethodPut, url+"/things", `{
		"settings": {"analysis": {
			"filter": {"possessive": {"type": "stemmer", "language": "possessive_english"}},
			"analyzer": {"english_words": {"type": "custom", "tokenizer": "standard", "filter": ["lowercase", "asciifolding", "possessive", "porter_stem"]}}}},
		"mappings": {"properties": {"title": {"type": "text", "analyzer": "english_words"}}}}`)
	call(t, http.MethodPut, url+"/things/_doc/1", `{"title": "The CAFÉ's hanging Candles"}`)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"cafe", "candle", "hang"} {
		if answerBody := call(t, http.MethodGet, url+"/things/_count?q=title:"+word,
			""); !strings.HasPrefix(answerBody, `{"count":1,`) {
			t.Errorf("%s: %s", word, answerBody)
		}
	}
}
