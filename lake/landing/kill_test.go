package landing

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/test/servers/process"
)

// These variables make this binary a lander instead of running tests, so that a test can kill it.
// They have the lake, the brokers, and the step at which it kills itself.
const (
	childLake    = "MILLRACE_TEST_LAKE"
	childBrokers = "MILLRACE_TEST_BROKERS"
	childKill    = "MILLRACE_TEST_KILL"
	childKillAt  = "MILLRACE_TEST_KILL_AT"
	childName    = "MILLRACE_TEST_NAME"
	childSeal    = "MILLRACE_TEST_SEAL" // of the records; then it accepts dead letters
)

// childInstance is the name of a lander in its own process.
const childInstance = "child"

func TestMain(m *testing.M) {
	if where := os.Getenv(childLake); where != "" {
		if err := childLands(where); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// A check of TestRandomFaults takes most of a second. -rapid.checks still overrides this.
	if err := flag.Set("rapid.checks", "10"); err != nil {
		panic(err)
	}
	process.Parallel(4) // they wait for brokers, sessions of groups, and servers
	code := m.Run()
	if err := errors.Join(catalogs.Stop(), objects.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// childPlace returns the lake of a child.
type childPlace struct {
	Warehouse, Catalog, CatalogPassword string
	S3                                  lake.S3
}

// childLands lands until it is killed or finishes.
func childLands(where string) error {
	ctx := context.Background()
	var place childPlace
	if err := json.Unmarshal([]byte(where), &place); err != nil {
		return err
	}
	config := ordersOnly(lake.Config{Warehouse: place.Warehouse, Catalog: place.Catalog, CatalogPassword: place.CatalogPassword, S3: place.S3, Logger: quiet()})
	l, err := lake.Open(ctx, config)
	if err != nil {
		return err
	}
	s := shop{brokers: strings.Split(os.Getenv(childBrokers), ","), seal: os.Getenv(childSeal)}
	c := s.runConfig()
	if s.seal != "" {
		c.WriteDeadLetters = func(context.Context, []DeadLetter) error { return nil }
	}
	c.Instance = os.Getenv(childName)
	left := new(atomic.Int64)
	if n, err := strconv.ParseInt(os.Getenv(childKillAt), 10, 64); err == nil {
		left.Store(n)
	} else if os.Getenv(childKill) != "" {
		return err
	}
	c.hook = func(_ context.Context, table string, s step) error {
		if table+": "+string(s) == os.Getenv(childKill) && left.Add(-1) <= 0 {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	return Run(ctx, l, c)
}

// childCommand is the command of a lander in its own process.
func childCommand(t *testing.T, s *shop, where lake.Config, env ...string) *exec.Cmd {
	t.Helper()
	config, err := json.Marshal(childPlace{where.Warehouse, where.Catalog, where.CatalogPassword, where.S3})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), append(env, childName+"="+childInstance, childLake+"="+string(config), childBrokers+"="+strings.Join(s.brokers, ","))...)
	cmd.Stderr = os.Stderr
	return cmd
}

// successor is the configuration of landers that replace a killed child. They have its name, as after
// the restart of a process, so that the group does not wait until the child's session ends.
// TestProcessesShareTables waits for that.
func (s *shop) successor() Config {
	c := s.runConfig()
	c.Instance = childInstance
	return c
}

func launch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
}

// startChild starts a lander in its own process.
func startChild(t *testing.T, s *shop, where lake.Config, env ...string) *exec.Cmd {
	t.Helper()
	cmd := childCommand(t, s, where, env...)
	launch(t, cmd)
	return cmd
}

// killed waits for the child and checks that it was killed.
func killed(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v instead of being killed", err)
	}
}

// A lander that is killed at any step leaves a table that the next one completes.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 200)
		for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name, tables.OrdersCurrent.Name} {
			for _, at := range []step{stepFetched, stepLookedUp, stepClosed, stepCommit, stepCommitted} {
				for _, nth := range []string{"1", "2"} {
					// A State table only looks up rows from the second landing on. In the first one
					// it behaves like the others.
					if state := name == tables.OrdersCurrent.Name; state && nth == "1" || !state && at == stepLookedUp {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s", name, at, nth), func(t *testing.T) {
						config := ordersOnly(fresh(t))
						child := startChild(t, s, config, childKill+"="+name+": "+string(at), childKillAt+"="+nth)
						if nth == "2" { // something for the second landing
							l := openLake(t, config)
							eventually(t, func() error { return hasRows(t, l, name, at) })
							s.mustTrade(t, 20)
						}
						killed(t, child)
						l := openLake(t, config)
						stop := start(t, l, s.successor())
						s.landed(t, l)
						mustStop(t, stop)
						s.check(t, l)
					})
				}
			}
		}
	})
}

// hasRows waits for a child's first landing if the step under test belongs to the second.
func hasRows(t *testing.T, l *lake.Lake, name string, at step) error {
	if at == stepFetched { // the second fetch may well be of the first landing
		return nil
	}
	states, err := l.Tables(t.Context())
	if err != nil {
		return err
	}
	for _, s := range states {
		if s.Name == name && s.Rows > 0 {
			return nil
		}
	}
	return errors.New("nothing has landed yet")
}

// Landers that are killed repeatedly while events arrive lose and duplicate nothing.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		config := ordersOnly(fresh(t))
		ctx, cancel := context.WithCancel(t.Context())
		trading := make(chan error, 1)
		go func() {
			pace := time.NewTicker(25 * time.Millisecond)
			defer pace.Stop()
			for ; ctx.Err() == nil; <-pace.C {
				if err := s.trade(context.WithoutCancel(ctx), 8); err != nil {
					trading <- err
					return
				}
			}
			trading <- nil
		}()
		l := openLake(t, config)
		rows := func() (n int64) {
			states, err := l.Tables(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range states {
				if s.Topic == event.Order.Topic {
					n += s.Rows
				}
			}
			return n
		}
		kills := 20
		if config.S3.Endpoint != "" { // slower, and each kill is the same
			kills = 8
		}
		if testing.Short() {
			kills = 5
		}
		for range kills {
			before := rows()
			child := startChild(t, s, config)
			// Any moment will do once it lands.
			eventually(t, func() error {
				if rows() == before {
					return errors.New("the child lands nothing")
				}
				return nil
			})
			<-time.After(rand.N(100 * time.Millisecond))
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			killed(t, child)
		}
		cancel()
		if err := <-trading; err != nil {
			t.Fatal(err)
		}
		stop := start(t, l, s.successor())
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)
	})
}
