package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/config"
)

// Role is a part of the system's work that can run in processes of its own.
type Role string

// The roles. Their names are the values of --role.
const (
	Commands Role = "commands" // accepts commands
	// Publishes events from the stores to Kafka. A second process fences the first.
	Relay Role = "relay"
	Views Role = "views" // feeds the views; the processes share the partitions
	Lake  Role = "lake"  // lands the tables; the processes share the partitions
	Query Role = "query" // answers queries and SQL
	Admin Role = "admin" // answers status and verify
	// Fills the tables of features in ClickHouse; the processes share the work. Answers vectors.
	Features Role = "features"
	Iceberg  Role = "iceberg" // serves Iceberg's REST catalog to other engines
	// Receives the events of tracking clients; any number of processes.
	Tracking Role = "tracking"
)

// Roles returns all roles.
func Roles() []Role {
	return []Role{Commands, Relay, Views, Lake, Features, Query, Admin, Iceberg, Tracking}
}

// component is something that a process starts. start in app.go defines the order. Roles share
// components: a process with two roles that need Kafka connects once.
type component int

const (
	folder        component = iota // the data folder, for embedded servers
	stores                         // event stores
	eventLog                       // Kafka
	runtimeFlags                   // flags that operators change at run time
	viewSinks                      // the servers that store the views' documents
	tables                         // the lake
	landing                        // landers
	engine                         // of SQL
	featureTables                  // in ClickHouse
	featureFeeds                   // fill them
	runners                        // feed the views
	followers                      // observe how far other processes have fed the views
	relays
	vectors // features, in memory or in Redis
	intake  // of tracking clients
	serving // the listeners
)

// needs maps each role to the components that it needs. docs/real-servers.md has the same table for
// operators. The role commands does not need Kafka: a command is accepted once its store has it,
// and the relay publishes it later. The role tracking reads no flags, because anyone can send to its
// listener, so it has few rights on Kafka.
var needs = map[Role][]component{
	Commands: {stores},
	Relay:    {stores, eventLog, runtimeFlags, relays},
	Views:    {eventLog, runtimeFlags, viewSinks, runners},
	Lake:     {eventLog, runtimeFlags, tables, landing},
	Query:    {eventLog, runtimeFlags, viewSinks, followers, tables, engine},
	Features: {eventLog, runtimeFlags, featureTables, featureFeeds, vectors},
	Admin:    {stores, eventLog, runtimeFlags, viewSinks, followers, tables, featureTables},
	Iceberg:  {tables},
	Tracking: {eventLog, intake},
}

// ParseRoles parses "all", or a list such as "commands,relay".
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
			return nil, fmt.Errorf("unknown role %q: want a comma-separated list of %s, or all", name,
				strings.Join(known, ", "))
		}
		// A role that is named twice counts once.
		if !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	return roles, nil
}

// wanted returns the parts that a process with these roles starts.
func wanted(roles []Role) map[component]bool {
	w := map[component]bool{serving: true}
	for _, r := range roles {
		for _, n := range needs[r] {
			w[n] = true
		}
	}
	// A process that feeds the views knows how far they are, so it need not follow them.
	if w[runners] {
		delete(w, followers)
	}
	return w
}

// embedded returns the servers that would have to run inside this process. Each is named by the key
// that configures a real server instead.
func embedded(c config.Config, w map[component]bool) []string {
	var keys []string
	sharedVectors := c.Redis.Addr
	if c.Features.Online.Store != config.OnlineInRedis {
		sharedVectors = "unused"
	}
	for _, p := range []struct {
		component component
		key       string
		set       string
	}{
		{stores, "store.postgres", c.Store.Postgres},
		{eventLog, "kafka.brokers", c.Kafka.Brokers},
		{viewSinks, "redis.addr", c.Redis.Addr},
		{vectors, "redis.addr", sharedVectors},
		{viewSinks, "search.elasticsearch", c.Search.Elasticsearch},
		{tables, "lake.catalog", c.Lake.Catalog},
		{tables, "lake.warehouse", c.Lake.Warehouse},
		{featureFeeds, "clickhouse.url", c.ClickHouse.URL},
	} {
		if w[p.component] && p.set == "" && !slices.Contains(keys, p.key) {
			keys = append(keys, p.key)
		}
	}
	return keys
}

// checkRoles returns an error if these roles cannot run in a process of their own. Other processes
// cannot reach embedded servers, so a process with embedded servers must have every role.
func checkRoles(c config.Config, roles []Role) error {
	if len(roles) == 0 {
		return errors.New("no roles: want at least one")
	}
	if len(roles) == len(Roles()) {
		return nil // ParseRoles removes duplicates, so these are all roles
	}
	if missing := embedded(c, wanted(roles)); len(missing) > 0 {
		return fmt.Errorf("roles %v need external servers: set %s (see `millrace config`), or run all roles in one process with `millrace up`",
			roles, strings.Join(missing, ", "))
	}
	return nil
}
