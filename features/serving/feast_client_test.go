package serving_test

import (
	_ "embed"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/test/servers/process"
)

//go:embed testdata/client.py
var feastClient string

// TestFeastClient: an unmodified Feast client with a remote online store reads from here: single
// entities and batches, feature services, full names, and errors of its own classes.
func TestFeastClient(t *testing.T) {
	process.SkipHeavy(t, "Feast")
	home, err := process.InstallDir("feast")
	if err != nil {
		process.SkipOrFail(t, "Feast", err)
	}
	s := httptest.NewServer(feastHandler(newBackend(t)))
	defer s.Close()
	dir := t.TempDir()
	for file, text := range map[string]string{"client.py": feastClient,
		"feature_store.yaml": "project: test\nregistry: registry.db\nprovider: local\n" +
			"online_store: {type: remote, path: \"" + s.URL + "\"}\nentity_key_serialization_version: 3\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client := exec.CommandContext(t.Context(), filepath.Join(home, "python", "bin", "python"), "client.py")
	client.Dir = dir
	out, err := client.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "all right") {
		t.Errorf("%v: %s", err, out)
	}
}
