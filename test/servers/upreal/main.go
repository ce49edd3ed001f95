// Command upreal implements `make up-real`. It starts every real server on loopback and every role
// of Millrace in a process of its own, runs a demo through all of them, and writes settings for a
// shell. It runs until Ctrl-C. With -costs it only reports the start times and memory of the
// servers.
//
// It is the manual counterpart of the end-to-end tests: both use the servers of test/servers/stack,
// so an operator can reproduce by hand what a test does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/millrace/millrace/ingest/demo"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/test/servers/clickhouse"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/stack"
)

func main() {
	binary := flag.String("millrace", "bin/millrace", "path of the millrace binary")
	costs := flag.Bool("costs", false,
		"only start the servers, and print their start times and memory as a Markdown table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// An error after Ctrl-C is usually a consequence of it, such as an interrupted demo.
	if err := run(ctx, *binary, *costs); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "up-real:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run starts the servers and the roles, runs the demo, verifies it, and blocks until ctx ends. It
// stops everything in reverse order: each role before the roles that started earlier, and the
// servers last. With costsOnly it returns once the servers have started.
func run(ctx context.Context, binary string, costsOnly bool) (err error) {
	fmt.Println("starting the servers…")
	var servers stack.Stack
	if err := servers.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Stop()) }()
	printCosts(servers.Costs(), costsOnly)
	if costsOnly {
		return nil
	}

	dir, err := os.MkdirTemp("", "millrace-roles-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the system's temporary folder
	// The tables of features are in one ClickHouse for all roles.
	var tables clickhouse.Server
	of, err := tables.Start()
	if err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	defer func() { err = errors.Join(err, tables.Stop()) }()
	settings := append(slices.Clone(servers.Env()), "MILLRACE_CLICKHOUSE_URL="+of.URL, "MILLRACE_CLICKHOUSE_USER="+of.User,
		"MILLRACE_CLICKHOUSE_PASSWORD="+of.Password)
	api, intake, admin := "", "", ""
	// The settings for the operator's shell: those of the servers, and the addresses of the query
	// and admin roles.
	var env []string
	// Roles that create things start before roles that read them.
	for _, role := range []string{"commands", "relay", "lake", "views", "features", "tracking", "admin", "query"} {
		r, err := start(ctx, binary, filepath.Join(dir, role), role, settings)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Stop(time.Minute)) }()
		fmt.Printf("%-9s process %d, operations on http://%s\n", role, r.PID(), r.admin)
		switch role {
		case "commands":
			api = r.api
		case "tracking":
			intake = r.api
		case "admin":
			admin = r.admin
		case "query":
			// The query role starts last, so the address of the admin role is known.
			env = append(slices.Clone(settings), "MILLRACE_ADDR="+r.api, "MILLRACE_ADMIN_ADDR="+admin)
		}
	}
	// The demo's commands travel through every process: store, relay, Kafka, views and lake.
	shop, err := demo.Run(ctx, demo.Config{BaseURL: "http://" + api})
	if err != nil {
		return err
	}
	// verify compares the digests of all copies of the data. Its failure is one of the demo.
	for _, command := range []string{"verify", "status"} {
		// They get the settings that the operator's shell gets below.
		cmd := exec.CommandContext(ctx, binary, command) //nolint:gosec // the operator's own binary
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("millrace %s: %w", command, err)
		}
	}
	// The file is private to the operator, and is removed with the folder at the end.
	file := filepath.Join(dir, "env")
	var exports strings.Builder
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&exports, "export %s='%s'\n", name, value)
	}
	if err := os.WriteFile(file, []byte(exports.String()), 0o600); err != nil {
		return err
	}
	fmt.Printf("\ncommands at http://%s, order %s of the demo at the query role; tracking at http://%s with the write key %s; "+
		"in another terminal:\n\n  . %s\n  %s status\n  %s sql \"SELECT count() FROM order_lines\"\n\nCtrl-C stops everything\n",
		api, shop.Reference, intake, tracking.DemoKey, file, binary, binary)
	<-ctx.Done()
	fmt.Println("stopping…")
	return nil
}

// running is the process of a role, with the addresses (host:port) of its API and of its operations
// endpoints.
type running struct {
	*process.Process
	api, admin string
}

// start starts a role in its own folder, where its log is too, with the servers' settings and free
// ports for its listeners. It returns once the role reports that it is ready.
func start(ctx context.Context, binary, dir, role string, env []string) (running, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return running{}, err
	}
	// The process has another working directory, so a relative path would not be found.
	path, err := filepath.Abs(binary)
	if err != nil {
		return running{}, err
	}
	// Every role needs ports of its own, because all of them are on one machine.
	ports, err := process.FreePorts(2)
	if err != nil {
		return running{}, err
	}
	r := running{api: fmt.Sprint("127.0.0.1:", ports[0]), admin: fmt.Sprint("127.0.0.1:", ports[1])}
	r.Process, err = process.Start(ctx, process.Command{
		Name: "millrace serve --role " + role, Path: path, Args: []string{"serve", "--role", role}, Dir: dir,
		Env: append(slices.Clone(env), "MILLRACE_ADDR="+r.api, "MILLRACE_ADMIN_ADDR="+r.admin, "MILLRACE_TRACKING_ADDR="+r.api),
		Ready: func(ctx context.Context) error {
			// The status is 200 once the role does its work: see "Readiness" in docs/operations.md.
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.admin+"/readyz", nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		},
	})
	return r, err
}

// printCosts prints a table of the servers in alphabetical order, because they start concurrently
// and finish in any order. The Markdown form is for the documentation.
func printCosts(costs []stack.Cost, markdown bool) {
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"server", "seconds to start", "MB"})
	slices.SortFunc(costs, func(a, b stack.Cost) int { return strings.Compare(a.Server, b.Server) })
	for _, c := range costs {
		t.AppendRow(table.Row{c.Server, fmt.Sprintf("%.1f", c.Start.Seconds()), c.MB})
	}
	if markdown {
		t.RenderMarkdown()
		return
	}
	t.Render()
}
