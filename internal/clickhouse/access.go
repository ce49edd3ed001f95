package clickhouse

import "fmt"

// The engine knows these users. On a server that others run, Admin is whom its settings name, and
// the readers are made once, with the same password and the rights that ReaderSetup tells.
const (
	// Admin may do anything, reading and writing files and fetching from the network included.
	Admin = "default"
	// Reader may run one statement that reads, over databases whose names start with ReaderPrefix.
	// Table functions that reach beyond them, the function file and changes of settings are
	// refused, and so are system tables that show other callers' queries
	// (select_from_system_db_requires_grant, which a server has by default). Queries that people
	// write run as Reader.
	Reader = "reader"
	// ReaderPrefix starts the names of the databases that Reader may read.
	ReaderPrefix = "lake_"
)

// ScopedReaders are how many users there are who may read less than Reader.
const ScopedReaders = 16

// ScopedReader returns one of them. It may read the databases alone whose names start with
// ScopedPrefix of its number, so that who may read some tables finds no others, however a query
// names them.
func ScopedReader(n int) string { return fmt.Sprintf("reader_%02d", n) }

// ScopedPrefix starts the names of the databases that ScopedReader may read.
func ScopedPrefix(n int) string { return fmt.Sprintf("%ss%02d_", ReaderPrefix, n) }

// ReaderSetup makes one of the readers on a server that others run; deploy/clickhouse/users.xml has
// them all. Settings of queries may change, the rights do not.
func ReaderSetup(user string) string {
	databases := ReaderPrefix
	for n := range ScopedReaders {
		if user == ScopedReader(n) {
			databases = ScopedPrefix(n)
		}
	}
	return fmt.Sprintf("CREATE USER %[1]s IDENTIFIED BY '<the password>' SETTINGS readonly = 2, max_execution_time = 300; GRANT SHOW, SELECT ON %[2]s*.* TO %[1]s", user, databases)
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

// What StartEngine tells its child, in the child's environment.
const (
	EnvLibrary  = "MILLRACE_ENGINE_LIBRARY"  // path of libchdb.so
	EnvData     = "MILLRACE_ENGINE_DATA"     // folder of the engine's files
	EnvPassword = "MILLRACE_ENGINE_PASSWORD" // what both users must show
	EnvListener = "MILLRACE_ENGINE_LISTENER" // number of the inherited file descriptor that listens
	// EnvListen is, in the place of EnvListener, the loopback address of an engine that nobody
	// watches: the one that stands for a server in tests.
	EnvListen = "MILLRACE_ENGINE_LISTEN"
)
