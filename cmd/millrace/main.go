// Command millrace is the whole system in one binary. "millrace up" starts all of it, and "millrace
// serve" some roles. The other subcommands talk to a running system, or work directly on its files
// and servers.
//
// Each subcommand is one file with a function newX that returns a cobra command. Subcommands
// contain flags, help and output only; internal/app does the work. They are of three kinds:
//
//   - up and serve start an app.App in this process and run until a signal.
//   - status, verify, replay, sql, profile, segments, flags and import call a running system through a caller (caller.go). Flags,
//     environment and configuration file give its addresses, its certificate and a token.
//   - lake, migrate, rebuild, and sql with --data work on the files and servers themselves.
//
// Standard output has the result only, so that it can be piped. Progress (output.go), logs and
// errors go to standard error. An error says what to do about it, and the exit code is 1. Errors of the command
// line itself are in usage.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/config"
)

func main() {
	// The context ends with the first signal. Every command then stops cleanly.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := execute(ctx, newRoot()); err != nil {
		if !errors.Is(err, errSilent) {
			fmt.Fprintln(os.Stderr, "millrace:", err)
		}
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// errSilent ends the process with code 1 without a message, because the command has already printed
// its result.
var errSilent = errors.New("")

// cli holds the persistent flags, and --data and --tracking-addr for the commands that have them. An empty flag is not
// set. config applies the others to the configuration. All commands share one. Its fields are set
// by the time that a command runs, and not yet when the command is defined.
type cli struct {
	configPath      string
	addr, adminAddr string
	data            string
	trackingAddr    string
}

// newRoot returns the root command with all subcommands.
func newRoot() *cobra.Command {
	a := &cli{}
	root := &cobra.Command{
		Use:   "millrace",
		Short: "The streaming core of a commerce platform in one binary",
		Long: `Millrace turns commands into events and publishes them to Kafka in order. Views, search and Iceberg tables are
derived data that it can rebuild from the log.

Start it with "millrace up": everything in one process. "millrace serve --role" runs parts of it in different
processes, on real servers. Then try, in another terminal:

  millrace status                                     count, lag and freshness of everything
  millrace sql "SELECT count() FROM order_lines"      SQL over the tables
  millrace profile ID                                 everything that is known of a customer
  millrace trace ORDER                                one order's way through every hop
  millrace lake tables                                the tables: rows, files, history
  millrace flags ls                                   flags that apply at run time, without a restart
  millrace verify                                     store = topic = tables = views, or the first difference
  millrace replay --target orderstatus                build a view again beside the one that serves
  millrace import online-retail FILE.parquet          a real shop's year, as commands

Settings come from millrace.yaml, then the environment, then flags. "millrace config" prints all of them.`,
		// main prints errors. The usage would hide them.
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "",
		"configuration file (default millrace.yaml, which may be absent)")
	root.PersistentFlags().StringVar(&a.addr, "addr", "",
		"HOST:PORT of commands, queries and SQL (default from the configuration: 127.0.0.1:7400)")
	root.PersistentFlags().StringVar(&a.adminAddr, "admin-addr", "",
		"HOST:PORT of health, metrics, status and verify (default from the configuration: 127.0.0.1:7401)")
	root.AddCommand(newUp(a), newServe(a), newStatus(a), newTop(a), newImport(a), newSQL(a), newProfile(a), newSegments(a),
		newDLQ(a), newTrace(a), newDoctor(a), newEvents(), newFeatures(a), newFlags(a), newLake(a), newVerify(a),
		newReplay(a), newConfig(a), newMigrate(a), newRebuild(a), newEngine())
	// The root and groups such as "lake" run nothing themselves.
	suggest(root)
	for _, c := range root.Commands() {
		if c.HasSubCommands() && !c.Runnable() {
			suggest(c)
		}
	}
	return root
}

// dataFlag adds --data to a command. It is not persistent, because most commands call a system
// elsewhere, which has its own data folder.
func (a *cli) dataFlag(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&a.data, "data", "", usage)
}

// trackingFlag adds --tracking-addr to a command that starts a system. No command calls that
// listener.
func (a *cli) trackingFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.trackingAddr, "tracking-addr", "",
		"HOST:PORT of the intake of tracking clients (default from the configuration: 127.0.0.1:7402)")
}

// config returns the configuration with the flags applied to it. The check refuses settings that
// cannot work on this machine, before anything is opened.
func (a *cli) config() (config.Config, error) {
	c, err := a.loadConfig()
	if err != nil {
		return c, err
	}
	return c, c.Check()
}

// loadConfig is config without the check, for commands that call a system elsewhere: the addresses
// of its listeners need not be valid for this machine.
func (a *cli) loadConfig() (config.Config, error) {
	// Flags override the environment and the file.
	c, err := config.Load(a.configPath, os.LookupEnv)
	if err != nil {
		return c, err
	}
	if a.addr != "" {
		c.Addr = a.addr
	}
	if a.adminAddr != "" {
		c.Admin.Addr = a.adminAddr
	}
	if a.trackingAddr != "" {
		c.Tracking.Addr = a.trackingAddr
	}
	if a.data != "" {
		c.Data = a.data
	}
	return c, nil
}

// newConfig returns the command config.
//
// A secret is printed as its file, or as a placeholder, never as its value.
func newConfig(a *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the configuration in force: every key with its description and environment variable",
		Long: `Print the configuration in force as a file: defaults, then millrace.yaml (or --config), then the environment,
then flags. Redirect the output to millrace.yaml to start a file of your own. Secrets are printed as "(hidden)"; replace
them there.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			_, err = c.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
}
