package clickhouse_test

import (
	"os"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
)

// facts has every part of a definition.
var facts = clickhouse.Table{
	Database: clickhouse.Features, Name: "facts", Engine: "ReplacingMergeTree", EngineArgs: []string{"version"},
	Columns: []clickhouse.Column{
		{Name: "id", Type: "UUID"}, {Name: "at", Type: "DateTime64(6, 'UTC')", Codec: "Delta, ZSTD(1)"},
		{Name: "version", Type: "UInt64", Default: "DEFAULT 1"},
	},
	OrderBy: []string{"id", "at"}, PartitionBy: "toYYYYMM(at)", TTL: "toDateTime(at) + INTERVAL 90 DAY",
	Window: 500, Settings: map[string]string{"index_granularity": "1024"}, Comment: "it's",
}

func TestDDL(t *testing.T) {
	t.Parallel()
	columns := "(\n  `id` UUID,\n  `at` DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),\n  `version` UInt64 DEFAULT 1\n)"
	rest := "PARTITION BY toYYYYMM(at)\nORDER BY (id, at)\nTTL toDateTime(at) + INTERVAL 90 DAY\nSETTINGS "
	for cluster, want := range map[string]string{
		"": "CREATE TABLE IF NOT EXISTS `features`.`facts` " + columns + " ENGINE = ReplacingMergeTree(version)\n" + rest +
			"index_granularity = 1024, non_replicated_deduplication_window = 500\nCOMMENT 'it\\'s'",
		"shop": "CREATE TABLE IF NOT EXISTS `features`.`facts` ON CLUSTER `shop` " + columns +
			" ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/features/facts', '{replica}', version)\n" + rest +
			"index_granularity = 1024, replicated_deduplication_window = 500, replicated_deduplication_window_seconds = 604800\nCOMMENT 'it\\'s'",
	} {
		if got := facts.DDL(cluster); got != want {
			t.Errorf("cluster %q:\n%s\nwant\n%s", cluster, got, want)
		}
	}
}

// Mistakes in a definition are named.
func TestTableFaults(t *testing.T) {
	t.Parallel()
	s, err := clickhouse.OpenStore(clickhouse.StoreConfig{Server: clickhouse.Server{URL: "http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it has no connections
	for want, change := range map[string]func(*clickhouse.Table){
		"database \"a`b\"":          func(t *clickhouse.Table) { t.Database = "a`b" },
		`"a.b" is not a plain name`: func(t *clickhouse.Table) { t.Name = "a.b" },
		"has no columns":            func(t *clickhouse.Table) { t.Columns = nil },
		`column "x y"`:              func(t *clickhouse.Table) { t.Columns = []clickhouse.Column{{Name: "x y", Type: "Int8"}} },
		"column x has no type":      func(t *clickhouse.Table) { t.Columns = []clickhouse.Column{{Name: "x"}} },
		"column x is defined twice": func(t *clickhouse.Table) {
			t.Columns = []clickhouse.Column{{Name: "x", Type: "Int8"}, {Name: "x", Type: "Int8"}}
		},
		`engine "Memory"`:              func(t *clickhouse.Table) { t.Engine = "Memory" },
		"name it without Replicated":   func(t *clickhouse.Table) { t.Engine = "ReplicatedMergeTree" },
		"window -1":                    func(t *clickhouse.Table) { t.Window = -1 },
		"column x of type Nonsense":    func(t *clickhouse.Table) { t.Columns = []clickhouse.Column{{Name: "x", Type: "Nonsense"}} },
		"not all of the columns [nix]": func(*clickhouse.Table) {},
	} {
		table := facts
		change(&table)
		var columns []string
		if strings.Contains(want, "nix") {
			columns = []string{"nix"}
		}
		if _, err := s.Batch(table, "", columns...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	for _, c := range []clickhouse.StoreConfig{
		{Server: clickhouse.Server{URL: "127.0.0.1"}}, {Server: clickhouse.Server{URL: "http://a:b@127.0.0.1"}},
		{Server: clickhouse.Server{URL: "http://127.0.0.1"}, Cluster: "a`b"},
	} {
		if _, err := clickhouse.OpenStore(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// The users in deploy/ have the rights that this package expects.
func TestDeployedUsers(t *testing.T) {
	t.Parallel()
	users, err := os.ReadFile("../../deploy/clickhouse/users.xml")
	if err != nil {
		t.Fatal(err)
	}
	for user, setup := range map[string]string{
		clickhouse.Reader: clickhouse.ReaderSetup(clickhouse.Reader), clickhouse.ScopedReader(7): clickhouse.ReaderSetup(clickhouse.ScopedReader(7)),
		clickhouse.Writer: clickhouse.WriterSetup(clickhouse.Writer, ""),
	} {
		_, section, _ := strings.Cut(string(users), "<users>")
		_, section, _ = strings.Cut(section, "<"+user+">")
		section, _, _ = strings.Cut(section, "</"+user+">")
		for _, statement := range strings.Split(setup, "; ")[1:] {
			if grant := strings.TrimSuffix(statement, " TO "+user); !strings.Contains(section, "<query>"+grant+"</query>") {
				t.Errorf("%s has no %q", user, grant)
			}
		}
	}
	if cluster := clickhouse.WriterSetup("w", "shop"); !strings.HasSuffix(cluster, "; GRANT CLUSTER ON *.* TO w") {
		t.Errorf("on a cluster: %s", cluster)
	}
}
