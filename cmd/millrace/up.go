package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/event/identity"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/ingest/demo"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/config"
)

// newUp returns the command up. It is "serve --role all" with a demo, a status and proposals for
// what to try next.
//
// The demo's commands have fixed idempotency keys. So each start sends the same commands, and only
// the first start has an effect.
func newUp(a *cli) *cobra.Command {
	var noDemo bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the whole system in this process and serve until Ctrl-C",
		Long: `Start every part of Millrace on loopback: event stores, log, views, search, lake and SQL engine. The data is
in the folder --data. Then send a few hundred commands of a small demo shop, show the results, and serve.

The next start continues from the data on disk. The demo's commands are not duplicated. --no-demo omits them.`,
		Args: cobra.NoArgs,
	}
	a.dataFlag(cmd, "data folder (default from the configuration: data)")
	a.trackingFlag(cmd)
	cmd.Flags().BoolVar(&noDemo, "no-demo", false, "start and serve without sending the demo's commands")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		ctx, out := cmd.Context(), cmd.OutOrStdout()
		log := c.Log.Logger(os.Stderr)
		begun := time.Now()
		// All roles, so every server may be embedded.
		p, err := app.Start(ctx, c, app.Roles(), log)
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		// If a port was 0, this is the one that was chosen.
		c.Addr, c.Admin.Addr = p.Addr(), p.AdminAddr()
		caller, err := newCaller(c)
		if err != nil {
			return errors.Join(err, p.Close())
		}
		fmt.Fprintf(out, "millrace is up after %v, on %s, data in %s\n", time.Since(begun).Round(10*time.Millisecond),
			caller.api(), c.Data)
		// If the demo fails, stop rather than serve: something basic is wrong.
		err = present(ctx, out, p, caller, a.configPath, noDemo)
		if err == nil {
			select {
			case <-ctx.Done():
			case <-p.Failed():
			}
		}
		// Ctrl-C is the normal end.
		if ctx.Err() != nil {
			err = nil
		}
		fmt.Fprintln(out, "stopping…")
		err = errors.Join(err, p.Close())
		if err == nil {
			fmt.Fprintln(out, "stopped; everything acknowledged is on disk")
		}
		return err
	}
	return cmd
}

// present runs the demo unless noDemo is set, and prints the status of the system. It returns an
// error only if the demo fails; the system then stops.
func present(ctx context.Context, out io.Writer, p *app.App, caller caller, configPath string, noDemo bool) error {
	var sample demo.Result
	if !noDemo {
		b := newBar("demo shop: commands")
		var err error
		sample, err = demo.Run(ctx, demo.Config{BaseURL: caller.api(), Client: caller.options(),
			Progress: func(done, total int) { b.set(int64(done), int64(total), "") }})
		b.end(err)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		// Wait, so that the status and the proposed queries show the demo's orders.
		b = newBar("demo shop: sinks catch up")
		err = p.CatchUp(ctx, func(_ string, done, total int) { b.set(int64(done), int64(total), "") })
		b.end(err)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	s, err := p.Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
	// A busy machine can be too slow to answer. The system still works.
	if err != nil {
		fmt.Fprintln(os.Stderr, "millrace: no status yet:", err)
	} else {
		printSinks(out, s.Msg)
		printAddresses(out, s.Msg)
	}
	if !noDemo {
		if err := showSample(ctx, out, caller, sample); err != nil {
			fmt.Fprintln(os.Stderr, "millrace: no profile yet:", err)
		}
		printTryNext(out, caller, configPath, sample)
	}
	fmt.Fprintf(out, "tracking on %s%s\n", caller.url(p.TrackingAddr()), demoKey(caller.c))
	fmt.Fprintf(out, "serving on %s, operations on %s; Ctrl-C stops\n", caller.api(), caller.url(caller.c.Admin.Addr))
	return nil
}

// showSample prints the profile of a customer of the demo.
func showSample(ctx context.Context, out io.Writer, caller caller, sample demo.Result) error {
	r, err := caller.profile(ctx, identity.Customer(sample.CustomerID), "")
	if err != nil {
		return err
	}
	printProfile(out, r)
	return nil
}

// demoKey names the write key of the intake, if it is the one that everybody knows.
func demoKey(c config.Config) string {
	if c.Tracking.Keys != "" {
		return ""
	}
	return ", with the write key " + tracking.DemoKey
}

// printTryNext prints five commands that can be copied. They contain addresses only if those are
// not the defaults, and the configuration file if there is one. A copied command works in a shell
// in the same folder, because it uses the path by which this process was started.
func printTryNext(out io.Writer, caller caller, configPath string, sample demo.Result) {
	// A command that is copied must reach this system and no other.
	usual := config.Default()
	addr, adminAddr, curl, grpcurl := "", "", "curl -s", "grpcurl -plaintext"
	if caller.c.Addr != usual.Addr {
		addr = " --addr " + caller.c.Addr
	}
	if caller.c.Admin.Addr != usual.Admin.Addr {
		adminAddr = " --admin-addr " + caller.c.Admin.Addr
	}
	if configPath != "" {
		addr, adminAddr = " --config "+configPath+addr, " --config "+configPath+adminAddr
	}
	if caller.c.TLS.Cert != "" {
		grpcurl = "grpcurl"
		if ca := caller.c.Auth.CA; ca != "" {
			curl, grpcurl = curl+" --cacert "+ca, grpcurl+" -cacert "+ca
		}
	}
	if caller.c.Auth.Tokens != "" {
		const header = ` -H "Authorization: Bearer $MILLRACE_AUTH_TOKEN"`
		curl, grpcurl = curl+header, grpcurl+header
	}
	fmt.Fprintf(out, `
Try next, in another terminal:

  # an order, no older than the command that gave the token (gRPC works too: %[11]s %[2]s list)
  %[8]s %[1]s/millrace.order.v1.OrderQueryService/GetOrder \
    -H 'Content-Type: application/json' -d '{"orderId":"%[3]s","token":"%[4]s"}'

  # SQL over the open tables
  %[6]s sql%[5]s "SELECT sku, sum(quantity) AS items, sum(quantity * unit_price) AS sales FROM order_lines GROUP BY sku ORDER BY sales DESC LIMIT 5"

  # everything that is known of a customer, found by the id of a browser
  %[6]s profile%[5]s %[9]s

  # what models know of a product, computed from the events up to now
  %[6]s features get product_popularity %[10]s%[5]s

  # store = topic = tables = views, by count and content
  %[6]s verify%[7]s

`, caller.api(), caller.c.Addr, sample.OrderID, sample.Token, addr, os.Args[0], adminAddr, curl, sample.Identifier, sample.SKU,
		grpcurl)
}
