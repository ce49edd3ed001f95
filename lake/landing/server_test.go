package landing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/tables"
	pgserver "github.com/millrace/millrace/test/servers/postgres"
	s3server "github.com/millrace/millrace/test/servers/s3"
)

// Whatever the object store does to any call, and for how long, each row lands once, without a
// restart.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	calls := map[string]func(method, path string) bool{
		"writing data":      func(m, p string) bool { return m == http.MethodPut && strings.HasSuffix(p, ".parquet") },
		"writing manifests": func(m, p string) bool { return m == http.MethodPut && strings.HasSuffix(p, ".avro") },
		"reading manifests": func(m, p string) bool { return m == http.MethodGet && strings.HasSuffix(p, ".avro") },
		"writing metadata":  func(m, p string) bool { return m == http.MethodPut && strings.HasSuffix(p, ".metadata.json") },
		"reading metadata":  func(m, p string) bool { return m == http.MethodGet && strings.HasSuffix(p, ".metadata.json") },
		"any call":          func(string, string) bool { return true },
	}
	// The client tries a call three times, so five failures in a row reach the lander.
	for name, becomes := range map[string]func(call int64) s3server.Fault{
		"error": func(n int64) s3server.Fault {
			return map[bool]s3server.Fault{true: {Status: http.StatusInternalServerError}}[n <= 5 || n%4 == 0]
		},
		"overload": func(n int64) s3server.Fault {
			return map[bool]s3server.Fault{true: {Status: http.StatusServiceUnavailable}}[n%2 == 0]
		},
		"lost answer": func(n int64) s3server.Fault { return s3server.Fault{Lost: n <= 5 || n%4 == 0} },
		"slow":        func(int64) s3server.Fault { return s3server.Fault{Delay: 20 * time.Millisecond} },
	} {
		for call, matches := range calls {
			if (name == "slow" || name == "overload") != (call == "any call") {
				continue
			}
			t.Run(call+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := newShop(t)
				s.mustTrade(t, 30)
				config := ordersOnly(serverLake(t))
				l := openLake(t, config) // made while all is well
				proxy, err := s3server.NewProxy(config.S3.Endpoint)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = proxy.Close() })
				var n atomic.Int64
				proxy.Break(func(r *http.Request) s3server.Fault {
					if !matches(r.Method, r.URL.Path) {
						return s3server.Fault{}
					}
					return becomes(n.Add(1))
				})
				broken := config
				broken.S3.Endpoint = proxy.Endpoint
				var lander *lake.Lake
				eventually(t, func() (err error) { // a store that fails at the start fails Open
					lander, err = lake.Open(t.Context(), broken)
					return err
				})
				t.Cleanup(func() { _ = lander.Close() })
				stop := start(t, lander, s.runConfig())
				s.landed(t, l)
				s.mustTrade(t, 10) // onto manifests that are there
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
				checkFiles(t, l)
				if n.Load() == 0 {
					t.Error("no call was broken")
				}
			})
		}
	}
}

// Landers wait for an object store that dies, or accepts requests without answering.
func TestStoreGoesAway(t *testing.T) {
	t.Parallel()
	var own s3server.Server
	store := own.Config(t)
	t.Cleanup(func() { _ = own.Stop() })
	s := newShop(t)
	config := ordersOnly(serverLake(t))
	config.S3.Endpoint = store.Endpoint
	var log logged
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.mustTrade(t, 20)
	s.landed(t, l)

	if err := own.Kill(); err != nil {
		t.Fatal(err)
	}
	s.mustTrade(t, 20)
	eventually(t, func() error { return log.has("landing failed") }) // all tries of a call have failed
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.landed(t, l)

	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	s.mustTrade(t, 20)
	<-time.After(time.Second) // in the middle of things
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
	if err := log.has(store.SecretKey); err == nil {
		t.Error("the log shows the secret")
	}
}

// A catalog that crashes repeatedly under load, and recovers, has everything that it acknowledged.
func TestCatalogCrashes(t *testing.T) {
	t.Parallel()
	var own pgserver.Cluster
	conn := own.ConnString(t)
	t.Cleanup(func() { _ = own.Stop() })
	s := newShop(t)
	config := ordersOnly(serverLake(t))
	config.Catalog = newCatalog(t, conn)
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	for range 3 {
		s.mustTrade(t, 20)
		s.landed(t, l)
		trading := make(chan error, 1)
		go func() { trading <- s.trade(context.WithoutCancel(t.Context()), 60) }()
		<-time.After(50 * time.Millisecond) // somewhere in the landing of these
		if err := own.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := own.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := <-trading; err != nil {
			t.Fatal(err)
		}
	}
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
}

// deafProxy is a proxy between lander and PostgreSQL. It drops the connection instead of passing on
// the answer to a COMMIT that changes the catalog, whenever lose returns true.
func deafProxy(t *testing.T, conn string, lose func() bool) (addr string) {
	t.Helper()
	var host, port string
	for _, pair := range strings.Fields(conn) {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "host":
			host = value
		case "port":
			port = value
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer client.Close() //nolint:errcheck // one of both ends first
				server, err := net.Dial("unix", host+"/.s.PGSQL."+port)
				if err != nil {
					return
				}
				defer server.Close() //nolint:errcheck // as above
				var deaf atomic.Bool
				all.Go(func() {
					defer client.Close() //nolint:errcheck // as above
					buf := make([]byte, 64<<10)
					for {
						n, err := server.Read(buf)
						if deaf.Load() || err != nil {
							return // the server has done its work and said so
						}
						if _, err := client.Write(buf[:n]); err != nil {
							return
						}
					}
				})
				changes := false
				buf := make([]byte, 64<<10)
				for {
					n, err := client.Read(buf)
					if err != nil {
						return
					}
					said := buf[:n]
					changes = changes || bytes.Contains(said, []byte(`UPDATE "iceberg_tables"`)) || bytes.Contains(said, []byte(`INSERT INTO "iceberg_tables"`))
					if bytes.Contains(bytes.ToLower(said), []byte("commit\x00")) {
						deaf.Store(changes && lose())
						changes = false
					}
					if _, err := server.Write(said); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// PostgreSQL commits and its answer is lost, while tables are created and while rows land.
func TestCatalogAnswersAreLost(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.mustTrade(t, 60)
	config := ordersOnly(serverLake(t))
	conn := catalogs.ConnString(t)
	var commits, dropped atomic.Int64
	host, port, err := net.SplitHostPort(deafProxy(t, conn, func() bool {
		if commits.Add(1)%2 == 0 {
			return false
		}
		dropped.Add(1)
		return true
	}))
	if err != nil {
		t.Fatal(err)
	}
	through := config
	through.Catalog = newCatalog(t, conn) + "&sslmode=disable"
	for _, pair := range strings.Fields(conn) {
		if value, ok := strings.CutPrefix(pair, "host="); ok {
			through.Catalog = strings.Replace(through.Catalog, "host="+strings.ReplaceAll(value, "/", "%2F"), "host="+host, 1)
		}
		if value, ok := strings.CutPrefix(pair, "port="); ok {
			through.Catalog = strings.Replace(through.Catalog, "port="+value, "port="+port, 1)
		}
	}
	l := openLake(t, through)
	if dropped.Load() == 0 {
		t.Error("no answer was lost while the tables were made")
	}
	stop := start(t, l, s.runConfig())
	s.landed(t, l)
	s.mustTrade(t, 20)
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
	checkFiles(t, l)
	if dropped.Load() < 5 {
		t.Errorf("only %d of %d answers were lost", dropped.Load(), commits.Load())
	}
}

// Processes that start at once without any tables create them once, and all continue.
func TestManyOpenAtOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		config := fresh(t)
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				l, err := lake.Open(t.Context(), config)
				if err != nil {
					t.Error(err)
					return
				}
				if states, err := l.Tables(t.Context()); err != nil || len(states) != len(tables.All()) {
					t.Errorf("%d tables, %v", len(states), err)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// Settings that cannot work are refused by name, without showing secrets.
func TestSettingsAreChecked(t *testing.T) {
	t.Parallel()
	const secret = "s3cret-of-the-test"
	whole := func(change func(*lake.Config)) lake.Config {
		c := localLake(t)
		c.Warehouse, c.S3 = "s3://bucket/folder", lake.S3{Endpoint: "http://127.0.0.1:1", Region: "us-east-1", AccessKey: "key", SecretKey: secret}
		change(&c)
		return c
	}
	for want, c := range map[string]lake.Config{
		"want s3://bucket/folder":                    whole(func(c *lake.Config) { c.Warehouse = "s3:///folder" }),
		"want a folder or s3://bucket/folder":        whole(func(c *lake.Config) { c.Warehouse = "gs://bucket/folder" }),
		"set both the access key and the secret key": whole(func(c *lake.Config) { c.S3.AccessKey = "" }),
		"set a region":                               whole(func(c *lake.Config) { c.S3.Region = "" }),
		"is not http(s)://host:port":                 whole(func(c *lake.Config) { c.S3.Endpoint = "127.0.0.1:9000" }),
		"connect to the lake's catalog":              whole(func(c *lake.Config) { c.Catalog, c.CatalogPassword = "postgres://me@127.0.0.1:1/lake", secret }),
		"the lake's catalog: cannot parse":           whole(func(c *lake.Config) { c.Catalog = "postgres://me:" + secret + "@127.0.0.1:no/lake" }),
		"create table customers_events":              whole(func(*lake.Config) {}), // no server listens
	} {
		_, err := lake.Open(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// A lake on servers without tables is distinguished from a broken one.
func TestNoLakeOnServers(t *testing.T) {
	t.Parallel()
	config := serverLake(t)
	config.ReadOnly = true
	if _, err := lake.Open(t.Context(), config); !errors.Is(err, lake.ErrNoLake) {
		t.Errorf("error %v", err)
	}
	db, err := postgres.Open(config.Catalog, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var made int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()").Scan(&made); err != nil || made != 0 {
		t.Errorf("opening it to read made %d tables, %v", made, err)
	}
}

// logs collects the log of a child.
func logs(t *testing.T, cmd *exec.Cmd, to io.Writer) {
	t.Helper()
	cmd.Stderr = to
	cmd.Env = append(cmd.Env, "MILLRACE_TEST_LOG=1")
}

// Two processes share the partitions of every table. When one is suspended for longer than the
// group waits, the other takes over its partitions, and a commit of the first after it resumes is
// refused. When the other is killed, the first takes over everything.
//
// This is not tested with a catalog in SQLite: a suspended process would hold the file's lock, and
// all others would wait. PostgreSQL ends the transaction of a suspended client, as configured in
// deploy/.
func TestProcessesShareTables(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		config := ordersOnly(fresh(t))
		sleeps := strings.HasPrefix(config.Catalog, "postgres://")
		if sleeps {
			config.Catalog += "&idle_in_transaction_session_timeout=5000"
		}
		l := openLake(t, config)
		ctx, cancel := context.WithCancel(t.Context())
		trading := make(chan error, 1)
		go func() {
			ticker := time.NewTicker(400 * time.Millisecond) // no maintenance runs here, so limit the number of commits
			defer ticker.Stop()
			for ; ctx.Err() == nil; <-ticker.C {
				behind, err := s.behind(t.Context(), l)
				if err == nil && behind < 200 { // a slow machine gets less to land
					err = s.trade(t.Context(), 4)
				}
				if err != nil {
					trading <- err
					return
				}
			}
			trading <- nil
		}()
		var said [2]logged
		var children [2]*exec.Cmd
		for i := range children {
			children[i] = childCommand(t, s, config)
			children[i].Env = append(children[i].Env, childName+"=") // none: it is missed first
			logs(t, children[i], &said[i])
			launch(t, children[i])
		}
		t.Cleanup(func() {
			if t.Failed() {
				for i := range said {
					t.Logf("process %d says:\n%s", i, said[i].buf.String())
				}
			}
		})
		names := []string{tables.OrdersEvents.Name, tables.OrdersCurrent.Name}
		eventually(t, func() error {
			for i := range said {
				for _, name := range names {
					if said[i].last("table="+name, "landing") == "" {
						return fmt.Errorf("process %d lands nothing in %s", i, name)
					}
				}
			}
			return nil
		})
		// caughtUp waits until every partition has passed the current end of its log.
		caughtUp := func(why string) {
			began := time.Now()
			ends, err := s.producer.Ends(t.Context(), event.Order.Topic)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				for _, name := range names {
					for partition, next := range stateOf(t, l, name).Offsets {
						if next < ends[partition] {
							return fmt.Errorf("%s, and partition %d of %s is at %d of %d", why, partition, name, next, ends[partition])
						}
					}
				}
				return nil
			})
			t.Logf("%s: all partitions go on after %v", why, time.Since(began).Round(time.Millisecond))
		}
		caughtUp("both at work")
		signal := func(i int, s syscall.Signal) {
			if err := children[i].Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		if sleeps {
			signal(0, syscall.SIGSTOP)
			caughtUp("one sleeps")
			signal(0, syscall.SIGCONT)
			caughtUp("it is awake")
		}
		signal(1, syscall.SIGKILL)
		killed(t, children[1])
		caughtUp("the other is killed")
		cancel()
		if err := <-trading; err != nil {
			t.Fatal(err)
		}
		s.landed(t, l)
		signal(0, syscall.SIGKILL)
		killed(t, children[0])
		s.check(t, l)
	})
}

// A process that does not land and may only read answers verify's requests.
func TestReadersBesideTheLander(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	config := serverLake(t)
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.mustTrade(t, 40)
	s.landed(t, l)
	mustStop(t, stop)
	config.ReadOnly = true
	reader := openLake(t, config)
	s.check(t, reader)
	if applied, err := reader.Applied(t.Context(), event.Order.Topic); err != nil || len(applied) == 0 {
		t.Errorf("applied %v, %v", applied, err)
	}
}
