package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// chdb runs every session as the user "default" and cannot impersonate another one. So this user
// has no rights of its own. It has the role admin, one for the writer and one for each reader, and
// their sessions keep only that role.
const usersXML = `<clickhouse>
  <profiles><default>
    <max_query_size>8000000</max_query_size>
    <max_memory_usage>4000000000</max_memory_usage>
    <max_bytes_before_external_group_by>1000000000</max_bytes_before_external_group_by>
    <max_bytes_before_external_sort>1000000000</max_bytes_before_external_sort>
    <query_profiler_real_time_period_ns>0</query_profiler_real_time_period_ns>
    <query_profiler_cpu_time_period_ns>0</query_profiler_cpu_time_period_ns>
    <allow_introspection_functions>0</allow_introspection_functions>
  </default></profiles>
  <roles>
    <admin><grants><query>GRANT ALL ON *.* WITH GRANT OPTION</query></grants></admin>
    %[1]s
  </roles>
  <users><default>
    <password></password>
    <networks><ip>::/0</ip></networks>
    <profile>default</profile>
    <quota>default</quota>
    <grants><query>GRANT admin</query>%[2]s</grants>
  </default></users>
  <quotas><default></default></quotas>
</clickhouse>
`

// configXML limits the engine to half of the machine's memory.
const configXML = `<clickhouse>
  <users_config>%s</users_config>
  <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
</clickhouse>
`

// usersConfig returns usersXML with the readers.
func usersConfig() string {
	// One role per reader, all granted to the default user. See usersXML.
	var roles, granted strings.Builder
	add := func(role, rights string, databases ...string) {
		fmt.Fprintf(&roles, "<%s><grants>", role)
		for _, database := range databases {
			fmt.Fprintf(&roles, "<query>GRANT %s ON %s.*</query>", rights, database)
		}
		fmt.Fprintf(&roles, "</grants></%s>", role)
		fmt.Fprintf(&granted, "<query>GRANT %s</query>", role)
	}
	const read = "SELECT, SHOW DATABASES, SHOW TABLES, SHOW COLUMNS"
	add(clickhouse.Reader, read, clickhouse.ReaderPrefix+"*", clickhouse.Features)
	add(clickhouse.Writer, clickhouse.WriterRights, clickhouse.Features)
	// Each scoped reader has a role that covers only its own databases.
	for n := range clickhouse.ScopedReaders {
		add(clickhouse.ScopedReader(n), read, clickhouse.ScopedPrefix(n)+"*")
	}
	return fmt.Sprintf(usersXML, roles.String(), granted.String())
}

// writeConfig writes the engine's configuration to dir and returns the path of its main file.
func writeConfig(dir string) (string, error) {
	users, config := filepath.Join(dir, "users.xml"), filepath.Join(dir, "config.xml")
	if err := os.WriteFile(users, []byte(usersConfig()), 0o600); err != nil {
		return "", fmt.Errorf("write the engine's users: %w", err)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, configXML, xmlText.Replace(users)), 0o600); err != nil {
		return "", fmt.Errorf("write the engine's configuration: %w", err)
	}
	return config, nil
}

// xmlText escapes text for XML.
var xmlText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// Time limits of a reader's query, in seconds: streamed, and buffered.
const (
	readerStreams = 300
	readerBuffers = 30
)

// becomeReader returns the statements that drop all rights a reader does not have, for the rest of
// the session. The role, which has the user's name, is the main protection. readonly is a second
// one, and keeps the limits from being raised.
func becomeReader(user string, streamed bool) []string {
	// A buffered answer holds memory until it is complete, so it gets less time.
	seconds := readerBuffers
	if streamed {
		seconds = readerStreams
	}
	return []string{
		"SET ROLE " + quoteName(user),
		fmt.Sprintf("SET max_execution_time = %d, timeout_overflow_mode = 'throw', readonly = 1", seconds),
	}
}

// systemTables are the system tables that readers may read. Their content does not depend on other
// callers. Other tables show queries of other callers, or the machine. A server refuses them
// without a grant (select_from_system_db_requires_grant), but chdb ignores that setting.
var systemTables = map[string]bool{
	"one": true, "numbers": true, "numbers_mt": true, "zeros": true, "zeros_mt": true,
	"tables": true, "columns": true, "databases": true, "functions": true, "table_functions": true,
	"aggregate_function_combinators": true, "data_type_families": true, "formats": true, "table_engines": true,
	"time_zones": true, "collations": true, "keywords": true,
	"build_options": true, "licenses": true, "contributors": true,
}

// systemTable matches a system table in a query, and wordProcesslist SHOW PROCESSLIST.
var (
	systemTable     = regexp.MustCompile("(?:\\bsystem\\b|`system`|\"system\")\\s*\\.\\s*[`\"]?(\\w*)")
	wordProcesslist = regexp.MustCompile(`(?i)\bprocesslist\b`)
)

// wordFile matches the function file.
var wordFile = regexp.MustCompile(`\bfile\b`)

// writerTables are the system tables that the writer may read, too. They show its own tables only.
var writerTables = map[string]bool{
	"parts": true, "merges": true, "mutations": true, "parts_columns": true, "replicas": true,
}

// limited reports whether a user has a role with fewer rights than admin.
func limited(user string) bool { return user == clickhouse.Writer || clickhouse.IsReader(user) }

// guard refuses what roles and readonly do not: for a reader, anything but one read-only statement;
// for the writer, statements that change more than tables; and for both the
// function file. That function reads any file of this machine, and no grant covers it here. It can
// be called by name, by a quoted name, inside APPLY and as the argument of a higher-order function.
// So the name itself is refused. ClickHouse's own lexer finds it: normalizeQuery removes strings
// and comments. A remaining backslash is an escape in a quoted name, which could hide the name.
func guard(c *connection, user, sql string, class statementClass) error {
	writer := user == clickhouse.Writer
	switch {
	case writer && (class == classMutateGlobal || class == classControl):
		return denied("only statements that read or change tables are allowed")
	case !writer && class != classRead:
		return &clickhouse.Error{
			Code: clickhouse.CodeReadOnly, Name: "READONLY",
			Message: "only statements that read are allowed: SELECT, SHOW, DESCRIBE, EXPLAIN, EXISTS",
		}
	}
	// The query without strings and comments, so that their text cannot look like a name.
	bare, err := c.run("SELECT normalizeQueryKeepNames("+quote(sql)+")", "RawBLOB")
	if err != nil {
		return err
	}
	for _, named := range systemTable.FindAllSubmatch(bare, -1) {
		if !systemTables[string(named[1])] && (!writer || !writerTables[string(named[1])]) {
			return &clickhouse.Error{
				Code: clickhouse.CodeUnknownTable, Name: "UNKNOWN_TABLE",
				Message: fmt.Sprintf("Table system.%s does not exist", named[1]),
			}
		}
	}
	if wordProcesslist.Match(bare) {
		return denied("the process list is not allowed: it shows other callers' queries")
	}
	if wordFile.Match(bare) {
		return denied("the name file is not allowed: the function reads files of the server")
	}
	if strings.ContainsRune(string(bare), '\\') {
		return denied("escapes in quoted names are not allowed")
	}
	return nil
}

// denied returns the error for a statement that a reader may not run.
func denied(message string) error {
	return &clickhouse.Error{Code: clickhouse.CodeAccessDenied, Name: "ACCESS_DENIED", Message: message}
}

// explainUnparsable returns the parser's reason. It does not run the statement.
func explainUnparsable(c *connection, sql string) error {
	_, err := c.run("SELECT formatQuery("+quote(sql)+")", "Null")
	if e := (*clickhouse.Error)(nil); errors.As(err, &e) {
		e.Message, _, _ = strings.Cut(e.Message, ": In scope SELECT formatQuery(")
	} else if err == nil {
		err = notImplemented("the embedded engine does not support statements of this kind")
	}
	return err
}

// quote returns s as a string literal.
func quote(s string) string {
	return "'" + literal.Replace(s) + "'"
}

// literal escapes the content of a string literal.
var literal = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// quoteName returns s as a quoted identifier.
func quoteName(s string) string {
	return "`" + name.Replace(s) + "`"
}

// name escapes the content of a quoted identifier.
var name = strings.NewReplacer(`\`, `\\`, "`", "\\`")
