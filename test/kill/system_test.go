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
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// system is a running Millrace: its roles, their servers, and the ledger of its commands. Rows run
// one after the other on the same growing system, so each row also verifies the data of the rows
// before it.
type system struct {
	dir      string
	env      []string // of every process of Millrace, including the command line
	roles    map[string]*role
	recorder *recorder
	ledger   *ledger
	visits   visits

	brokers   string
	openStore func(context.Context, event.Aggregate) (eventstore.Store, error)
	close     []func() error // in reverse order
	yearLines int            // lines of the real year that were imported

	purges int // number of tables that clients have created

	note string // a remark of the fault for the report

	servers *servers           // the real servers, if any
	links   map[string][]*link // to the real servers, by server
}

// role returns the named role, or "up" if one process runs all roles.
func (s *system) role(name string) *role {
	if up := s.roles["up"]; up != nil {
		return up
	}
	return s.roles[name]
}

// maintenanceEnv makes the lake's maintenance run almost continuously, and keep a short history.
var maintenanceEnv = []string{"MILLRACE_LAKE_MAINTENANCE_EVERY=5s", "MILLRACE_LAKE_MAINTENANCE_KEEP=20s"}

// segmentsEnv defines a segment that the customers of the load enter.
const segmentsEnv = "MILLRACE_CUSTOMER360_SEGMENTS={spenders: " +
	"{expression: 'features.customer_value.monetary_sum_90d > 0', purpose: marketing}}"

// startEmbedded starts `millrace up` with everything in one data folder.
func startEmbedded(ctx context.Context, dir string, env ...string) (*system, error) {
	ports, err := freePort()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	s := &system{
		dir: dir, ledger: newLedger(), brokers: loopback(ports),
		env: append([]string{
			"MILLRACE_KAFKA_LISTEN=" + loopback(ports), "MILLRACE_LOG_LEVEL=warn",
			"MILLRACE_COMMANDS_CURRENCIES={GBP: 3}", bisectEnv, segmentsEnv,
		}, slices.Concat(onlineEnv, maintenanceEnv)...),
		openStore: func(ctx context.Context, a event.Aggregate) (eventstore.Store, error) {
			return sqlite.Open(ctx, filepath.Join(data, "store", a.Service+".db"), a)
		},
	}
	if s.recorder, err = startRecorder(s.ledger); err != nil {
		return nil, err
	}
	s.roles = map[string]*role{"up": {
		name: "up", args: []string{"up", "--no-demo", "--data", data}, env: append(s.env, env...),
		dir: filepath.Join(dir, "up"), recorder: s.recorder,
	}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// open starts the roles, all at once as a scheduler does, and creates the products of the load.
func (s *system) open(ctx context.Context) error {
	var starting errgroup.Group
	for _, r := range s.roles {
		starting.Go(func() error { return r.start(ctx) })
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	return createProducts(ctx, s.recorder.addr)
}

// end stops the roles, the recorder and the servers.
func (s *system) end() error {
	var errs []error
	for _, r := range s.roles {
		errs = append(errs, r.stop())
	}
	if s.recorder != nil {
		errs = append(errs, s.recorder.close())
	}
	for i := len(s.close) - 1; i >= 0; i-- {
		errs = append(errs, s.close[i]())
	}
	return errors.Join(errs...)
}

// failed returns an error if a role cannot be kept running, or if an answer was wrong.
func (s *system) failed() error {
	errs := []error{s.recorder.violation()}
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
		return stdout.String(), fmt.Errorf("millrace %s: %w\n%s", strings.Join(args, " "), err, tail(stderr.String()))
	}
	return stdout.String(), nil
}

// tail returns the end of a text that may be long.
func tail(s string) string { return s[max(0, len(s)-2000):] }

var errDifferent = errors.New("millrace verify found a difference")

// verify runs `millrace verify`, and returns an error that describes the first difference.
func (s *system) verify(ctx context.Context) error {
	out, err := s.run(ctx, "verify", "--output", "json", "--wait", settleTimeout.String())
	var result struct {
		Equal      bool
		Aggregates []struct{ Difference string }
	}
	if json.Unmarshal([]byte(out), &result) != nil {
		return errors.Join(fmt.Errorf("decode the output of verify: %q", out), err)
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

// settleTimeout bounds the time until all sinks have caught up, once nothing fails any more. On a busy
// machine with two processors, that took up to a minute and a half.
const settleTimeout = 5 * time.Minute

func (s *system) kafka() kafka.Config {
	return kafka.Config{Brokers: s.brokers, ClientID: "millrace-kill", Stall: callTimeout}
}
