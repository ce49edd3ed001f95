package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
)

func newStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what stands where in the running system, how fresh it is, and where its servers listen",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		admin, err := a.admin()
		if err != nil {
			return err
		}
		r, err := admin.Status(cmd.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			return a.explain(err)
		}
		if *output == "json" {
			b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true, Indent: "  "}.Marshal(r.Msg)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return err
		}
		printSinks(cmd.OutOrStdout(), r.Msg)
		printAddresses(cmd.OutOrStdout(), r.Msg)
		return nil
	}
	return cmd
}

func printSinks(w io.Writer, s *adminv1.StatusResponse) {
	now := time.Now()
	rows := make([][]any, 0, len(s.Sinks))
	for _, k := range s.Sinks {
		rows = append(rows, []any{k.Sink, k.Count, k.Unit, k.LagEvents, ago(now, k.AsOf.AsTime())})
	}
	printTable(w, []string{"where", "count", "of", "events behind", "newest recorded"}, rows)
}

func printAddresses(w io.Writer, s *adminv1.StatusResponse) {
	for i, name := range slices.Sorted(maps.Keys(s.Addresses)) {
		if i > 0 {
			fmt.Fprint(w, ", ")
		}
		fmt.Fprint(w, name, " ", s.Addresses[name])
	}
	fmt.Fprintln(w)
}

// admin is the client of the running system's admin service.
func (a *app) admin() (adminv1connect.AdminServiceClient, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	return adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+c.Addr), nil
}

// explain says what to do about an error that means nobody is there.
func (a *app) explain(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no millrace answers (%w): start one with `millrace up`, or name its address with --addr", err)
	}
	return err
}
