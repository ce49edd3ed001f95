package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
)

// filledSystem answers that all tables have all facts, and a status per call, of which the last one stays.
type filledSystem struct {
	adminv1connect.UnimplementedAdminServiceHandler
	statuses []*adminv1.StatusResponse
	calls    int
}

// Status implements adminv1connect.AdminServiceHandler.
func (s *filledSystem) Status(context.Context, *connect.Request[adminv1.StatusRequest]) (
	*connect.Response[adminv1.StatusResponse], error) {
	status := s.statuses[min(s.calls, len(s.statuses)-1)]
	s.calls++
	return connect.NewResponse(status), nil
}

// flags starts the system and returns its addresses as flags.
func (s *filledSystem) flags(t *testing.T) []string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(adminv1connect.NewAdminServiceHandler(s))
	mux.HandleFunc("/v1/sql", func(w http.ResponseWriter, _ *http.Request) {
		for _, source := range []string{"customer_order_lines", "customer_orders"} {
			fmt.Fprintf(w, `{"table":"tiles_customer_value_v1_%s","tiles":3,"facts":5,"all":5}`+"\n", source)
		}
	})
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	return []string{"--addr", addr, "--admin-addr", addr}
}

// TestBackfillOfStoppedTables: a stopped table of the group is an error with the reason and the remedy,
// whether it is one of facts, of tiles or of versions. Tables of other groups do not count.
func TestBackfillOfStoppedTables(t *testing.T) {
	const other = "features.facts_stock_movements"
	for table, stopped := range map[string]bool{
		"features.facts_customer_orders":                        true,
		"features.tiles_customer_value_v1_customer_order_lines": true,
		"features.versions of customer_value":                   true,
		other:                                                   false,
		"features.tiles_customer_activity_v1_customer_orders":   false,
		"orders_events":                                         false,
	} {
		system := &filledSystem{statuses: []*adminv1.StatusResponse{{Tables: []*adminv1.TableFault{
			{Table: table, Reason: strings.TrimPrefix(table, "features.") + ": the disk is read-only", Remedy: "mount it again"}}}}}
		out, err := run(t, append([]string{"features", "backfill", "customer_value"}, system.flags(t)...)...)
		switch {
		case stopped && (err == nil || err.Error() != table+" is stopped: the disk is read-only; mount it again"):
			t.Errorf("%s: %v, want an error with reason and remedy:\n%s", table, err, out)
		case !stopped && (err != nil || !strings.Contains(out, "the tables have all facts")):
			t.Errorf("%s: %v:\n%s", table, err, out)
		}
	}
}

// TestBackfillWaits: a table that waits for something that does not answer is waited for, and what its
// facts lack of the topic is shown.
func TestBackfillWaits(t *testing.T) {
	system := &filledSystem{statuses: []*adminv1.StatusResponse{
		{Tables: []*adminv1.TableFault{{Table: "features.facts_customer_orders", Reason: "no answer", Transient: true}}},
		{Sinks: []*adminv1.SinkStatus{{Sink: "features facts_customer_orders", LagEvents: 7}}},
	}}
	out, err := run(t, append([]string{"features", "backfill", "customer_value", "-o", "json"}, system.flags(t)...)...)
	if err != nil || system.calls != 2 || !strings.Contains(out, `"events_behind": 7`) {
		t.Errorf("%d calls, %v:\n%s", system.calls, err, out)
	}
	// The listener of faults must be named, too.
	if _, err := run(t, "features", "backfill", "--addr", "127.0.0.1:9"); err == nil || !strings.Contains(err.Error(), "--admin-addr") {
		t.Errorf("without --admin-addr: %v", err)
	}
}
