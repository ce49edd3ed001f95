package app

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// TestMain ignores workers of bleve and LevelDB that end with the process, or after a while.
func TestMain(m *testing.M) {
	if os.Getenv(clickhouse.EnvListener) != "" { // the process of an embedded engine
		clickhousetest.Main(m)
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker"),
		goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}
