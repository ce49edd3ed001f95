package kill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// system is what a row works on: the roles, their servers, and the ledger. Rows run one after the
// other on the same growing system, so each row also verifies what the rows before it left behind.
type system struct {
	dir    string
	env    []string // how every process of Millrace, including the command line, reaches the servers
	roles  map[string]*role
	door   *door
	ledger *ledger

	brokers   string
	openStore func(context.Context, event.Aggregate) (eventstore.Store, error)
	close     []func() error // releases the resources, last first
	yearLines int            // lines of the real year that were imported

	purges int // number of tables that clients have created

	note string // a remark of the fault for the report

	servers *servers           // the real servers, if any
	wires   map[string][]*wire // to them
}

// role returns the role that has a part. One process has all of them, or each has its own.
func (s *system) role(name string) *role {
	if up := s.roles["up"]; up != nil {
		return up
	}
	return s.roles[name]
}

// upkeep lets the lake's maintenance run continuously, with a short history.
var upkeep = []string{"MILLRACE_LAKE_MAINTENANCE_EVERY=5s", "MILLRACE_LAKE_MAINTENANCE_KEEP=20s"}

// startEmbedded starts `millrace up` with everything in one data folder.
func startEmbedded(ctx context.Context, dir string, env ...string) (*system, error) {
	ports, err := freePort()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	s := &system{
		dir: dir, ledger: newLedger(), brokers: local(ports),
		env: append([]string{"MILLRACE_KAFKA_LISTEN=" + local(ports), "MILLRACE_LOG_LEVEL=warn", "MILLRACE_COMMANDS_CURRENCIES={GBP: 3}", unnamed}, upkeep...),
		openStore: func(ctx context.Context, a event.Aggregate) (eventstore.Store, error) {
			return sqlite.Open(ctx, filepath.Join(data, "store", a.Service+".db"), a)
		},
	}
	if s.door, err = openDoor(s.ledger); err != nil {
		return nil, err
	}
	s.roles = map[string]*role{"up": {
		name: "up", args: []string{"up", "--no-demo", "--data", data}, env: append(s.env, env...), dir: filepath.Join(dir, "up"), door: s.door,
	}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// open starts the roles, all at once as a scheduler does, and opens the shop.
func (s *system) open(ctx context.Context) error {
	var starting errgroup.Group
	for _, r := range s.roles {
		starting.Go(func() error { return r.start(ctx) })
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	return openShop(ctx, s.door.addr)
}

// end stops everything.
func (s *system) end() error {
	var errs []error
	for _, r := range s.roles {
		errs = append(errs, r.stop())
	}
	if s.door != nil {
		errs = append(errs, s.door.close())
	}
	for i := len(s.close) - 1; i >= 0; i-- {
		errs = append(errs, s.close[i]())
	}
	return errors.Join(errs...)
}

// failed returns an error if a role cannot be kept running, or if an answer was wrong.
func (s *system) failed() error {
	errs := []error{s.door.wrong()}
	for _, r := range s.roles {
		_, _, err := r.now()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// run runs a subcommand as an operator would, and returns its standard output.
func (s *system) run(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), s.env...)
	// The roles may be in one process, or queries and administration in processes of their own.
	if i, _, _ := s.role("query").now(); i != nil {
		cmd.Env = append(cmd.Env, "MILLRACE_ADDR="+i.addr)
	}
	if i, _, _ := s.role("admin").now(); i != nil {
		cmd.Env = append(cmd.Env, "MILLRACE_ADMIN_ADDR="+i.admin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("millrace %s: %w\n%s", strings.Join(args, " "), err, last(stderr.String()))
	}
	return stdout.String(), nil
}

// last returns the end of a text that may be long.
func last(s string) string { return s[max(0, len(s)-2000):] }

var errDifferent = errors.New("millrace verify found a difference")

// verify runs `millrace verify`, and returns an error that describes the first difference.
func (s *system) verify(ctx context.Context) error {
	out, err := s.run(ctx, "verify", "--output", "json", "--wait", settleWithin.String())
	var result struct {
		Equal      bool
		Aggregates []struct{ Difference string }
	}
	if json.Unmarshal([]byte(out), &result) != nil {
		return errors.Join(fmt.Errorf("verify said %q", out), err)
	}
	if !result.Equal { // the command has also returned an error
		err = errDifferent
		for _, a := range result.Aggregates {
			if a.Difference != "" {
				err = fmt.Errorf("%w: %s", err, a.Difference)
			}
		}
	}
	return err
}

// settleWithin bounds the time until all sinks are complete, once nothing fails any more.
const settleWithin = 2 * time.Minute

func (s *system) kafka() kafka.Config {
	return kafka.Config{Brokers: s.brokers, ClientID: "millrace-kill"}
}
