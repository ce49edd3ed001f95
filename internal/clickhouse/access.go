package clickhouse

// The engine knows two users. On a server that others run, Admin is whom its settings name, and Reader is made once, with
// the same password and the rights that ReaderSetup tells.
const (
	// Admin may do anything, reading and writing files and fetching from the network included.
	Admin = "default"
	// Reader may run one statement that reads, over databases whose names start with ReaderPrefix. Table functions that
	// reach beyond them, the function file and changes of settings are refused, and so are system tables that show other
	// callers' queries (select_from_system_db_requires_grant, which a server has by default). Queries that people write run
	// as Reader.
	Reader = "reader"
	// ReaderSetup makes Reader on a server that others run. Settings of queries may change, the rights do not.
	ReaderSetup = "CREATE USER reader IDENTIFIED BY '<the password>' SETTINGS readonly = 2, max_execution_time = 300; GRANT SHOW, SELECT ON lake_*.* TO reader"
	// ReaderPrefix starts the names of the databases that Reader may read.
	ReaderPrefix = "lake_"
)

// What StartEngine tells its child, in the child's environment.
const (
	EnvLibrary  = "MILLRACE_ENGINE_LIBRARY"  // path of libchdb.so
	EnvData     = "MILLRACE_ENGINE_DATA"     // folder of the engine's files
	EnvPassword = "MILLRACE_ENGINE_PASSWORD" // what both users must show
	EnvListener = "MILLRACE_ENGINE_LISTENER" // number of the inherited file descriptor that listens
	// EnvListen is, in the place of EnvListener, the loopback address of an engine that nobody watches: the one that stands
	// for a server in tests.
	EnvListen = "MILLRACE_ENGINE_LISTEN"
)
