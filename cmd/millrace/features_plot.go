package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/millrace/millrace/features/quality/plot"
	featureserving "github.com/millrace/millrace/features/serving"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// newFeaturesPlot returns the command features plot.
func newFeaturesPlot(a *cli) *cobra.Command {
	var profile profileFlags
	var out string
	cmd := &cobra.Command{
		Use:   "plot GROUP FEATURE",
		Short: "Draw how the values of a feature are distributed, beside the reference and day by day",
		Long: `Compute the values of a feature for a sample of entities, now and on reference days at the same time of
day, and draw them: the distribution beside that of the reference, and the quantiles or the most frequent
texts of each day. The drawing is text, or a PNG file with --out.`,
		Example: `  millrace features plot customer_value monetary_sum_30d
  millrace features plot product_popularity orders_7d --days 14 --out orders.png`,
		Args: cobra.ExactArgs(2),
	}
	output := outputFlag(cmd, "text", "json")
	profile.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write a picture to this file, whose name ends in .png")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out != "" && !strings.EqualFold(filepath.Ext(out), ".png") {
			return fmt.Errorf("--out %q: want a name that ends in .png", out)
		}
		r, err := profile.request(args[0])
		if err != nil {
			return err
		}
		r.Features, r.Daily = args[1:], true
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		res, err := featuresv1connect.NewQualityServiceClient(caller.http(), caller.api()).ProfileGroup(cmd.Context(),
			connect.NewRequest(r))
		if err != nil {
			return explainFeatures(err)
		}
		report := featureserving.ReportOf(res.Msg)
		if len(report.Features) != 1 {
			return fmt.Errorf("the system at --addr answered %d features, want 1", len(report.Features))
		}
		feature := &report.Features[0]
		switch {
		case out != "":
			// Written at once, so that an error leaves no part of a picture.
			var picture bytes.Buffer
			if err := plot.PNG(&picture, report, feature); err != nil {
				return err
			}
			if err := os.WriteFile(out, picture.Bytes(), 0o644); err != nil { //nolint:gosec // a picture for anybody
				return fmt.Errorf("--out: %w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "wrote", out)
			return err
		case *output == "json":
			b, err := protojson.MarshalOptions{UseProtoNames: true, Indent: "  "}.Marshal(res.Msg)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return err
		}
		return plot.Text(cmd.OutOrStdout(), report, feature, terminalWidth())
	}
	return cmd
}

// terminalWidth returns the width of the terminal, or that of an ordinary one if the output is not a
// terminal.
func terminalWidth() int {
	const ordinary, widest = 100, 160
	if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		return min(width, widest)
	}
	return ordinary
}
