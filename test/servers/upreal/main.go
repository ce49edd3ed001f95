// Command upreal implements `make up-real`: every real server on loopback, every role of Millrace
// in a process of its own, a demo through all of it, and settings for a shell, until Ctrl-C. With
// -costs it only reports the costs of the servers.
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
	if err := run(ctx, *binary, *costs); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "up-real:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run starts the servers and the roles, runs the demo, verifies it, and blocks until ctx ends. It
// stops everything in reverse order.
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
	api, admin := "", ""
	var env []string
	for _, role := range []string{"commands", "relay", "lake", "views", "admin", "query"} { // roles that create things start before roles that read them
		r, err := start(ctx, binary, filepath.Join(dir, role), role, servers.Env())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Stop(time.Minute)) }()
		fmt.Printf("%-9s process %d, operations on http://%s\n", role, r.PID(), r.admin)
		switch role {
		case "commands":
			api = r.api
		case "admin":
			admin = r.admin
		case "query":
			env = append(slices.Clone(servers.Env()), "MILLRACE_ADDR="+r.api, "MILLRACE_ADMIN_ADDR="+admin)
		}
	}
	shop, err := demo.Run(ctx, demo.Config{BaseURL: "http://" + api})
	if err != nil {
		return err
	}
	for _, command := range []string{"verify", "status"} {
		cmd := exec.CommandContext(ctx, binary, command) //nolint:gosec // the operator's own binary
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("millrace %s: %w", command, err)
		}
	}
	file := filepath.Join(dir, "env")
	var settings strings.Builder
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&settings, "export %s='%s'\n", name, value)
	}
	if err := os.WriteFile(file, []byte(settings.String()), 0o600); err != nil {
		return err
	}
	fmt.Printf("\ncommands at http://%s, order %s of the demo at the query role; in another terminal:\n\n  . %s\n  %s status\n  %s sql \"SELECT count() FROM order_lines\"\n\nCtrl-C stops everything\n",
		api, shop.Reference, file, binary, binary)
	<-ctx.Done()
	fmt.Println("stopping…")
	return nil
}

// running is the process of a role.
type running struct {
	*process.Process
	api, admin string
}

func start(ctx context.Context, binary, dir, role string, env []string) (running, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return running{}, err
	}
	path, err := filepath.Abs(binary)
	if err != nil {
		return running{}, err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return running{}, err
	}
	r := running{api: fmt.Sprint("127.0.0.1:", ports[0]), admin: fmt.Sprint("127.0.0.1:", ports[1])}
	r.Process, err = process.Start(ctx, process.Command{
		Name: "millrace serve --role " + role, Path: path, Args: []string{"serve", "--role", role}, Dir: dir,
		Env: append(slices.Clone(env), "MILLRACE_ADDR="+r.api, "MILLRACE_ADMIN_ADDR="+r.admin),
		Ready: func(ctx context.Context) error {
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
