package clickhouse

import "fmt"

// Users of the engine. On an external server, Admin is the user in the settings. The readers must
// be created once, with the same password and the rights in ReaderSetup.
const (
	// Admin may do everything, including reading and writing files and fetching from the network.
	Admin = "default"
	// Reader may run one read-only statement on databases whose names start with ReaderPrefix. It
	// may not use table functions that reach beyond them, the function file, changes of settings,
	// or system tables that show other callers' queries. (A server refuses these with
	// select_from_system_db_requires_grant, which is on by default.) Queries written by users run
	// as Reader.
	Reader = "reader"
	// ReaderPrefix is the prefix of the databases that Reader may read.
	ReaderPrefix = "lake_"
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
	databases := ReaderPrefix
	for n := range ScopedReaders {
		if user == ScopedReader(n) {
			databases = ScopedPrefix(n)
		}
	}
	return fmt.Sprintf("CREATE USER %[1]s IDENTIFIED BY '<the password>' SETTINGS readonly = 2, "+
		"max_execution_time = 300; GRANT SHOW, SELECT ON %[2]s*.* TO %[1]s", user, databases)
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

// Environment variables that StartEngine sets for its child.
const (
	EnvLibrary  = "MILLRACE_ENGINE_LIBRARY"  // path of libchdb.so
	EnvData     = "MILLRACE_ENGINE_DATA"     // folder of the engine's files
	EnvPassword = "MILLRACE_ENGINE_PASSWORD" // password of all users
	EnvListener = "MILLRACE_ENGINE_LISTENER" // number of the inherited file descriptor of the listener
	// EnvListen replaces EnvListener for an engine without a supervisor, which represents a server
	// in tests. It is the loopback address to listen on.
	EnvListen = "MILLRACE_ENGINE_LISTEN"
)
