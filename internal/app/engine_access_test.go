package app

import (
	"os"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
)

// TestRunningEngine: the access file gives the reader's access, and a missing or damaged one an error
// that says what to do.
func TestRunningEngine(t *testing.T) {
	c := config.Config{Data: t.TempDir()}
	if _, err := runningEngine(c); err == nil || !strings.Contains(err.Error(), "start `millrace up` there") {
		t.Errorf("without a file: error %v", err)
	}
	for text, want := range map[string]clickhouse.Server{
		`{"url":"http://127.0.0.1:1","password":"p"}`: {URL: "http://127.0.0.1:1", User: clickhouse.Reader, Password: "p"},
		`{"url":`: {},
	} {
		if err := os.WriteFile(c.Path(engineAccessFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := runningEngine(c)
		if got != want || (err == nil) != (want.URL != "") {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
