package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/config"
)

// Role is a part of the system's work that may have processes of its own, as many as wanted.
type Role string

// The roles.
const (
	Commands Role = "commands" // takes commands
	Relay    Role = "relay"    // carries events from the stores to the log; one at a time, a second one fences the first
	Views    Role = "views"    // feeds the views; the processes share the partitions
	Lake     Role = "lake"     // lands the tables; the processes share the partitions
	Query    Role = "query"    // answers queries and SQL
	Admin    Role = "admin"    // tells status, verifies
	Iceberg  Role = "iceberg"  // shows the lake's tables to other engines, by Iceberg's REST catalog
)

// Roles are all roles.
func Roles() []Role { return []Role{Commands, Relay, Views, Lake, Query, Admin, Iceberg} }

// part is something that a process starts, in this order.
type part int

const (
	folder    part = iota // of the embedded parts
	stores                // event stores
	logPart               // Kafka
	viewSinks             // what the views keep their documents in
	tables                // the lake
	landing               // and what lands in it
	engine                // SQL
	runners               // feed the views
	followers             // observe how far other processes have fed the views
	relays
	serving // both listeners
)

// needs is the whole of which role needs what.
var needs = map[Role][]part{
	Commands: {stores},
	Relay:    {stores, logPart, relays},
	Views:    {logPart, viewSinks, runners},
	Lake:     {logPart, tables, landing},
	Query:    {logPart, viewSinks, followers, tables, engine},
	Admin:    {stores, logPart, viewSinks, followers, tables},
	Iceberg:  {tables},
}

// ParseRoles reads "commands,relay" or "all".
func ParseRoles(s string) ([]Role, error) {
	if s == "all" {
		return Roles(), nil
	}
	known := make([]string, 0, len(needs))
	for _, r := range Roles() {
		known = append(known, string(r))
	}
	var roles []Role
	for name := range strings.SplitSeq(s, ",") {
		role := Role(strings.TrimSpace(name))
		if !slices.Contains(Roles(), role) {
			return nil, fmt.Errorf("role %q: want some of %s, separated by commas, or all", name, strings.Join(known, ", "))
		}
		if !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	return roles, nil
}

// wanted are the parts that a process with these roles starts.
func wanted(roles []Role) map[part]bool {
	w := map[part]bool{serving: true}
	for _, r := range roles {
		for _, n := range needs[r] {
			w[n] = true
		}
	}
	if w[runners] { // a process that feeds the views knows how far they are
		delete(w, followers)
	}
	return w
}

// embedded tells which parts would have to run inside this process, by the key that names a real server instead.
func embedded(c config.Config, w map[part]bool) []string {
	var keys []string
	for _, p := range []struct {
		part part
		key  string
		set  string
	}{
		{stores, "store.postgres", c.Store.Postgres},
		{logPart, "kafka.brokers", c.Kafka.Brokers},
		{viewSinks, "redis.addr", c.Redis.Addr},
		{viewSinks, "search.elasticsearch", c.Search.Elasticsearch},
		{tables, "lake.catalog", c.Lake.Catalog},
		{tables, "lake.warehouse", c.Lake.Warehouse},
	} {
		if w[p.part] && p.set == "" {
			keys = append(keys, p.key)
		}
	}
	return keys
}

// checkRoles finds out whether these roles can run in a process of their own: what is embedded lives in one process, which
// then must have every role.
func checkRoles(c config.Config, roles []Role) error {
	if len(roles) == 0 {
		return errors.New("no role is named")
	}
	if len(roles) == len(Roles()) {
		return nil
	}
	if missing := embedded(c, wanted(roles)); len(missing) > 0 {
		return fmt.Errorf("with the roles %v alone this process can embed nothing, as others could not reach it: set %s (`millrace config` explains each), or run all roles in one process with `millrace up`",
			roles, strings.Join(missing, ", "))
	}
	return nil
}
