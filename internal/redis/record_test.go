package redis_test

import (
	"testing"

	"github.com/millrace/millrace/internal/redis"
)

// TestRecordsAreComparedAndSet checks that a record changes only from the value that its writer has
// read, that a repeated write is not a conflict, and that Drop of the view keeps it.
func TestRecordsAreComparedAndSet(t *testing.T) {
	servers(t, func(t *testing.T, cfg redis.Config) {
		client, name := open(t, cfg), view(t)
		set := func(from, to string, want bool) {
			t.Helper()
			if done, err := client.SetRecord(t.Context(), name, from, to); err != nil || done != want {
				t.Errorf("from %q to %q: %v, %v; want %v", from, to, done, err, want)
			}
		}
		has := func(want string) {
			t.Helper()
			if got, err := client.Record(t.Context(), name); err != nil || got != want {
				t.Errorf("the record is %q, %v; want %q", got, err, want)
			}
		}
		has("")
		set("a", "b", false)
		set("", "a", true)
		set("", "a", true)
		set("", "b", false)
		set("a", "b", true)
		has("b")
		if err := client.Documents(name).Drop(t.Context()); err != nil {
			t.Fatal(err)
		}
		has("b")
		if other, err := client.Record(t.Context(), name+"@2"); err != nil || other != "" {
			t.Errorf("another view has the record %q, %v", other, err)
		}
	})
}
