package main

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/settings"
)

// newDoctor returns the command doctor. It exits with 1 if a check fails.
func newDoctor(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine, the configured servers and the running system, and say what to do",
		Long: `Check the configuration, the memory limit and the disk of this machine, the configured Kafka and Redis (reachable,
rights to read settings, topics, retention, eviction), and, if a system runs, what it found out about its servers: the
settings of PostgreSQL, Elasticsearch and the bucket, tables that cannot be landed, damaged views.

It changes nothing. It exits with 1 if a check fails; it does not for a warning.`,
		Args: cobra.NoArgs,
	}
	a.dataFlag(cmd, "data folder of the embedded servers (default from the configuration: data)")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		checks := append(app.Doctor(cmd.Context(), c, c.Log.Logger(cmd.ErrOrStderr())), a.systemChecks(cmd)...)
		if *output == "json" {
			err = printJSON(cmd.OutOrStdout(), checks)
		} else {
			rows := make([][]any, len(checks))
			for i, k := range checks {
				rows[i] = []any{string(k.Verdict), k.Part, k.Check, k.Found, k.Remedy}
			}
			printTable(cmd.OutOrStdout(), []string{"verdict", "part", "check", "found", "what to do"}, rows)
		}
		if err == nil && slices.ContainsFunc(checks, func(k app.Check) bool { return k.Verdict == app.Fail }) {
			err = errSilent
		}
		return err
	}
	return cmd
}

// systemChecks returns what a running system has found out.
func (a *cli) systemChecks(cmd *cobra.Command) []app.Check {
	caller, err := a.caller(adminListener)
	var r *connect.Response[adminv1.StatusResponse]
	if err == nil {
		r, err = caller.admin().Status(cmd.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return []app.Check{{Part: "system", Check: "running", Verdict: app.OK, Found: "not running"}}
	case err != nil:
		return []app.Check{{Part: "system", Check: "running", Verdict: app.Fail, Found: err.Error(),
			Remedy: fmt.Sprint(explain(err))}}
	}
	all := []app.Check{{Part: "system", Check: "running", Verdict: app.OK, Found: "answers"}}
	var faults []settings.Fault
	for _, f := range r.Msg.Settings {
		faults = append(faults, settings.Fault{Resource: f.Resource, Setting: f.Setting, Value: f.Value, Want: f.Want,
			Effect: f.Effect, Remedy: f.Remedy, Fatal: f.Fatal})
	}
	all = append(all, app.SettingChecks("system", faults, nil)...)
	for _, f := range r.Msg.Tables {
		all = append(all, app.Check{Part: "table", Check: f.Table, Verdict: app.Fail, Found: f.Reason, Remedy: f.Remedy})
	}
	for _, f := range r.Msg.Views {
		all = append(all, app.Check{Part: "view", Check: f.View + " " + f.Part, Verdict: app.Warn, Found: f.Reason,
			Remedy: "wait: it is rebuilt from the log"})
	}
	if r.Msg.SqlEngine != "" {
		all = append(all, app.Check{Part: "sql engine", Check: "running", Verdict: app.Fail, Found: r.Msg.SqlEngine,
			Remedy: "remove the cause; it is started again until it runs"})
	}
	return all
}
