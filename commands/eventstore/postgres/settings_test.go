package postgres_test

import (
	"context"
	"testing"

	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/internal/settings"
)

// Settings must find harmful settings of a role or a database. The server's defaults have no fault.
func TestSettings(t *testing.T) {
	schema := newSchema()
	conn := cluster.ConnString(t)
	for options, want := range map[string]struct {
		setting string
		fatal   bool
	}{
		"":                                 {"", false},
		" synchronous_commit=off":          {"synchronous_commit", true},
		" synchronous_commit=remote_write": {"", false},
		" statement_timeout=1000":          {"statement_timeout", false},
		" statement_timeout=60000":         {"", false},
		" lock_timeout=10":                 {"lock_timeout", false},
		" idle_session_timeout=1000":       {"idle_session_timeout", false},
	} {
		t.Run(options, func(t *testing.T) {
			s, err := postgres.Open(context.Background(), conn+options, eventstoretest.Aggregate, postgres.WithSchema(schema))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() //nolint:errcheck // nothing was written
			faults, err := s.Settings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var found string
			for _, f := range faults {
				found = f.Setting
			}
			if found != want.setting {
				t.Errorf("%q: found %v", options, faults)
			}
			if want.fatal && settings.Refuse(faults) == nil {
				t.Errorf("%q: Refuse accepts %v", options, faults)
			}
		})
	}
}
