// Package faults makes the network to one server at a time slow, silent or broken, and measures what
// the users of a whole system see, and how long after the fault everything works again.
//
// The system runs in this process. Each server that can fail is a real one behind a Toxiproxy. The
// invariants are the same for every fault: a caller gets an answer or an error that says "try again",
// within its deadline; what does not need the server works on; no event becomes a dead letter; and
// everything works again by itself, with nothing lost.
package faults

import (
	"flag"
	"os"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/test/servers/elasticsearch"
	"github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/redis"
	"github.com/millrace/millrace/test/servers/s3"
)

// Servers of all tests.
var (
	database postgres.Cluster
	cache    redis.Servers
	search   elasticsearch.Server
	objects  s3.Server
)

var (
	full   = flag.Bool("full", false, "try every fault, not only the worst")
	report = flag.String("report", "", "file to write the table of faults to")
)

func TestMain(m *testing.M) {
	if os.Getenv(clickhouse.EnvListener) != "" { // the process of an embedded engine
		clickhousetest.Main(m)
	}
	flag.Parse()
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics log to the global logger
	code := m.Run()
	for _, stop := range []func() error{database.Stop, cache.Stop, search.Stop, objects.Stop} {
		if err := stop(); err != nil {
			println("stop a server:", err.Error())
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(
			// Toxiproxy leaves some of these when a connection ends during a slow trickle.
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*SlicerToxic).Pipe"),
			goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker"),
			goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}
