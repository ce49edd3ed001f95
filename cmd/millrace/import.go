package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/ingest/onlineretail"
)

// newImport returns the command import with its subcommands, one per data set.
func newImport(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Import data sets as commands",
	}
	cmd.AddCommand(newImportOnlineRetail(a))
	return cmd
}

// newImportOnlineRetail returns the command import online-retail.
//
// The work is in package onlineretail. The command maps its flags to onlineretail.Config, shows the
// progress by rows of the file, and prints the summary.
func newImportOnlineRetail(a *cli) *cobra.Command {
	var limit int
	var rejects string
	var concurrency int
	cmd := &cobra.Command{
		Use:   "online-retail FILE",
		Short: "Import the Online Retail data set (Parquet) as the commands its shop would have issued",
		Long: `Read the invoice lines of FILE and send the commands that the shop would have issued to the running system at
--addr: register customer, list product, set price, receive stock, adjust stock, place order (one per
invoice). The file's own time is the business time.

Every command has an idempotency key made from the file's content. So the import may be stopped or killed and
run again: it continues where it was, and a second run changes nothing. A line that cannot become a command is
written to the rejects file with its row number and the reason: accepted + rejected = read.

Four lines of the file have a price of 0.001. A system that accepts whole pence only rejects their orders:
start it with MILLRACE_COMMANDS_CURRENCIES='{GBP: 3}'.`,
		Example: "  millrace import online-retail online-retail.parquet --rejects rejects.csv",
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.Flags().IntVar(&limit, "limit", 0, "number of lines to read (0: all)")
	cmd.Flags().StringVar(&rejects, "rejects", "rejects.csv", "file for rejected lines")
	cmd.Flags().IntVar(&concurrency, "concurrency", 128, "number of concurrent commands")
	// RunE is set here, because it needs the variables of the flags.
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		b := newBar("import " + filepath.Base(args[0]))
		summary, err := onlineretail.Import(cmd.Context(), onlineretail.Config{
			Path: args[0], Limit: limit, RejectsPath: rejects, BaseURL: caller.api(), Client: caller.options(),
			Concurrency: concurrency,
			Progress:    func(p onlineretail.Progress) { b.set(p.RowsRead, p.RowsTotal, "") },
		})
		b.end(err)
		// Every command has an idempotency key, so a repeated run skips what is done. An interrupt
		// is reported as such, rather than by the errors of the requests that it cancelled.
		if cmd.Context().Err() != nil {
			return fmt.Errorf("stopped (%w); run the same command again to resume", err)
		}
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), summary)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), summary)
		return err
	}
	return cmd
}
