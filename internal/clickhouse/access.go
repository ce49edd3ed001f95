package clickhouse

// The engine knows two users.
const (
	// Admin may do anything, reading and writing files and fetching from the network included.
	Admin = "default"
	// Reader may run one statement that reads, over databases whose names start with ReaderPrefix. Table functions that
	// reach beyond them, the function file and changes of settings are refused. Queries that people write run as Reader.
	Reader = "reader"
	// ReaderPrefix starts the names of the databases that Reader may read.
	ReaderPrefix = "lake_"
)

// What StartEngine tells its child, in the child's environment.
const (
	EnvLibrary  = "MILLRACE_ENGINE_LIBRARY"  // path of libchdb.so
	EnvData     = "MILLRACE_ENGINE_DATA"     // folder of the engine's files
	EnvPassword = "MILLRACE_ENGINE_PASSWORD" // what both users must show
	EnvListener = "MILLRACE_ENGINE_LISTENER" // number of the inherited file descriptor that listens
)
