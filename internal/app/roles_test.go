package app

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/config"
)

func TestParseRoles(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]Role{
		"all":                       Roles(),
		"commands":                  {Commands},
		"relay, views,relay":        {Relay, Views},
		"query,admin,iceberg,lake":  {Query, Admin, Iceberg, Lake},
		"commands,nonsense":         nil,
		"":                          nil,
		"Commands":                  nil,
		"commands,":                 nil,
		"commands relay":            nil,
		"all,commands":              nil,
		" commands , relay , views": {Commands, Relay, Views},
	} {
		roles, err := ParseRoles(text)
		if !slices.Equal(roles, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %v, %v; want %v", text, roles, err, want)
		}
	}
}

func TestEveryRoleNeedsSomething(t *testing.T) {
	t.Parallel()
	if len(needs) != len(Roles()) {
		t.Errorf("%d roles have needs, and there are %d", len(needs), len(Roles()))
	}
	for _, r := range Roles() {
		if len(needs[r]) == 0 {
			t.Errorf("role %s needs nothing", r)
		}
	}
}

// TestRunnersReplaceFollowers checks that a process which feeds the views does not follow them,
// too.
func TestRunnersReplaceFollowers(t *testing.T) {
	t.Parallel()
	if w := wanted([]Role{Query}); !w[followers] || w[runners] {
		t.Error("a process for queries alone follows the views")
	}
	if w := wanted([]Role{Query, Admin, Views}); w[followers] || !w[runners] {
		t.Error("a process that feeds the views need not follow them")
	}
}

// TestSeparateRolesNeedServers checks that roles in processes of their own need real servers, and
// that the error names the settings.
func TestSeparateRolesNeedServers(t *testing.T) {
	t.Parallel()
	c := config.Default()
	if err := checkRoles(c, Roles()); err != nil {
		t.Errorf("all roles embed everything: %v", err)
	}
	if err := checkRoles(c, nil); err == nil {
		t.Error("no role is an error")
	}
	err := checkRoles(c, []Role{Query})
	for _, key := range []string{"kafka.brokers", "redis.addr", "search.elasticsearch", "lake.catalog",
		"lake.warehouse"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("query alone: %v, which lacks %s", err, key)
		}
	}
	if err == nil || strings.Contains(err.Error(), "store.postgres") {
		t.Errorf("query alone needs no store: %v", err)
	}
	c.Kafka.Brokers = "127.0.0.1:9092"
	if err := checkRoles(c, []Role{Features}); err == nil || !strings.Contains(err.Error(), "clickhouse.url") {
		t.Errorf("features alone: %v, which lacks clickhouse.url", err)
	}
	c.ClickHouse.URL = "http://127.0.0.1:8123"
	if err := checkRoles(c, []Role{Features}); err != nil {
		t.Errorf("features need Kafka and ClickHouse only: %v", err)
	}
	c.Store.Postgres = "postgres://localhost/{service}"
	if err := checkRoles(c, []Role{Commands}); err != nil {
		t.Errorf("commands alone need a store: %v", err)
	}
}
