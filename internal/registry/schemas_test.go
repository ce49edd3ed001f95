package registry_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/protoavro"
	"github.com/millrace/millrace/internal/registry"
)

var update = flag.Bool("update", false, "rewrite schemas/")

// schemas is the folder of the published Avro schemas, one per topic.
const schemas = "../../schemas"

func schemaFile(a event.Aggregate) string { return a.Topic + ".avsc" }

// The committed schemas are those derived from the contracts.
func TestSchemasAreFresh(t *testing.T) {
	t.Parallel()
	var want []string
	for _, a := range event.Aggregates() {
		want = append(want, schemaFile(a))
		derived, err := protoavro.Indented(message(t, a))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(schemas, schemaFile(a))
		if *update {
			if err := os.WriteFile(path, []byte(derived), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if committed, err := os.ReadFile(path); err != nil || string(committed) != derived {
			t.Errorf("schemas/%s is stale (%v): run "+
				"`go test ./internal/registry -run TestSchemasAreFresh -update` and commit it", schemaFile(a), err)
		}
	}
	found, err := os.ReadDir(schemas)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if !strings.Contains(strings.Join(want, " "), f.Name()) {
			t.Errorf("schemas/%s belongs to no topic", f.Name())
		}
	}
}

// A real registry confirms that the schemas can read everything written with those published by
// main.
func TestSchemasAreCompatibleWithPublished(t *testing.T) {
	t.Parallel()
	base, err := published(t)
	if err != nil {
		t.Fatal(err)
	}
	if base == "" {
		t.Skip("main has published no schemas before these")
	}
	client := newClient(t, &shared)
	for _, a := range event.Aggregates() {
		before, err := exec.CommandContext(t.Context(), "git", "show", base+":schemas/"+schemaFile(a)).Output()
		if err != nil {
			t.Logf("%s has no schema of %s", base, a.Topic)
			continue
		}
		topic := topicOf(t) + "." + a.Topic
		if answer := query(t, "POST", "/subjects/"+topic+"-value/versions",
			fmt.Sprintf(`{"schema":%q}`, before)); !strings.Contains(answer, `"id"`) {
			t.Fatalf("the published schema of %s: %s", a.Topic, answer)
		}
		e := newEncoder(t, registry.EncoderConfig{Client: client, Topic: topic, Message: message(t, a),
			Codec: registry.Avro, Compatibility: "BACKWARD_TRANSITIVE"})
		if err := e.Start(t.Context()); err != nil {
			t.Errorf("the schema of %s breaks what %s published: %v", a.Topic, base, err)
		}
	}
}

// published returns the commit whose schemas main published before the current ones, as
// scripts/proto-breaking determines it: origin's main if it exists and its schemas differ,
// otherwise the previous commit, or empty if neither has schemas.
func published(t *testing.T) (string, error) {
	t.Helper()
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	head, err := git("rev-parse", "HEAD")
	if err != nil {
		return "", fmt.Errorf("git: %w", err)
	}
	for _, ref := range []string{"origin/main", "HEAD~1"} {
		commit, err := git("rev-parse", "--verify", "--quiet", ref)
		if err != nil {
			continue // there is none
		}
		if _, err := git("cat-file", "-e", commit+":schemas"); err != nil {
			continue
		}
		if commit == head {
			if _, err := git("diff", "--quiet", "HEAD", "--", "schemas"); err == nil {
				continue // it equals the working tree
			} else if !errors.As(err, new(*exec.ExitError)) {
				return "", err
			}
		}
		return commit, nil
	}
	return "", nil
}
