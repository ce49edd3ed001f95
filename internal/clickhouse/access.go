package clickhouse

import "fmt"

// Users of the engine. On an external server, Admin is the user in the settings. The readers must
// be created once, with the same password and the rights in ReaderSetup.
const (
	// Admin may do everything, including reading and writing files and fetching from the network.
	Admin = "default"
	// Reader may run one read-only statement on databases whose names start with ReaderPrefix, and
	// on Features. It may not use table functions that reach beyond them, the function file, changes of settings,
	// or system tables that show other callers' queries. (A server refuses these with
	// select_from_system_db_requires_grant, which is on by default.) Queries written by users run
	// as Reader.
	Reader = "reader"
	// ReaderPrefix is the prefix of the databases that Reader may read, besides Features.
	ReaderPrefix = "lake_"
	// Writer may create, change, fill and read the tables of the database Features, and nothing else.
	// A Store for features connects as Writer.
	Writer = "writer"
	// Features is the database of the tables that this system keeps in ClickHouse.
	Features = "features"
)

// ScopedReaders is the number of users with fewer rights than Reader.
const ScopedReaders = 16

// ScopedReader returns the nth scoped reader. It may read only databases whose names start with
// ScopedPrefix(n). So a caller with rights to some tables cannot reach others, however a query
// names them.
func ScopedReader(n int) string { return fmt.Sprintf("reader_%02d", n) }

// ScopedPrefix returns the prefix of the databases that ScopedReader(n) may read.
func ScopedPrefix(n int) string { return fmt.Sprintf("%ss%02d_", ReaderPrefix, n) }

// ReaderSetup returns the statements that create a reader on an external server.
// deploy/clickhouse/users.xml creates all of them. A query may change settings, but not rights.
func ReaderSetup(user string) string {
	databases := []string{ReaderPrefix + "*", Features}
	for n := range ScopedReaders {
		if user == ScopedReader(n) {
			databases = []string{ScopedPrefix(n) + "*"}
		}
	}
	setup := fmt.Sprintf("CREATE USER %s IDENTIFIED BY '<the password>' SETTINGS readonly = 2, "+
		"max_execution_time = 300", user)
	for _, database := range databases {
		setup += fmt.Sprintf("; GRANT SHOW, SELECT ON %s.* TO %s", database, user)
	}
	return setup
}

// WriterRights are the rights of Writer on Features.
const WriterRights = "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, " +
	"DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE"

// WriterSetup returns the statements that create the writer on an external server, where its name
// may be another one. deploy/clickhouse/users.xml creates it. On a cluster, it needs the right to
// run DDL on all replicas, too.
func WriterSetup(user, cluster string) string {
	setup := fmt.Sprintf("CREATE USER %[1]s IDENTIFIED BY '<the password>'; GRANT %[2]s ON %[3]s.* TO %[1]s",
		user, WriterRights, Features)
	if cluster != "" {
		setup += fmt.Sprintf("; GRANT CLUSTER ON *.* TO %s", user)
	}
	return setup
}

// IsReader reports whether a user is Reader or one of the ScopedReaders.
func IsReader(user string) bool {
	if user == Reader {
		return true
	}
	for n := range ScopedReaders {
		if user == ScopedReader(n) {
			return true
		}
	}
	return false
}

// BootFile is a file in the engine's folder that exists while ClickHouse reads its tables.
const BootFile = "booting"

// Environment variables that StartEngine sets for its child.
const (
	EnvLibrary  = "MILLRACE_ENGINE_LIBRARY"  // path of libchdb.so
	EnvData     = "MILLRACE_ENGINE_DATA"     // folder of the engine's scratch files
	EnvTables   = "MILLRACE_ENGINE_TABLES"   // folder of the tables; empty means in the folder of EnvData
	EnvPassword = "MILLRACE_ENGINE_PASSWORD" // password of all users
	EnvListener = "MILLRACE_ENGINE_LISTENER" // number of the inherited file descriptor of the listener
	// EnvListen replaces EnvListener for an engine without a supervisor, which represents a server
	// in tests. It is the loopback address to listen on.
	EnvListen = "MILLRACE_ENGINE_LISTEN"
)
