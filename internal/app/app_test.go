package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace/millrace/event"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	examplev1 "github.com/millrace/millrace/gen/millrace/example/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
)

// embeddedConfig returns the configuration of embedded servers on free ports.
func embeddedConfig(t *testing.T) config.Config {
	t.Helper()
	c := config.Default()
	c.Data = filepath.Join(t.TempDir(), "data")
	c.Addr, c.Admin.Addr, c.Tracking.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Kafka.Listen, c.Redis.Listen, c.ClickHouse.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Lake.CommitInterval = 100 * time.Millisecond
	return c
}

func startEmbedded(t *testing.T, c config.Config, m Modules, roles ...Role) *App {
	t.Helper()
	p, err := start(t.Context(), m, c, roles, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func get(t *testing.T, p *App, path string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.AdminAddr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

// TestServiceIsOneLine checks that a service which only its line in the list names is served,
// landed and verified.
func TestServiceIsOneLine(t *testing.T) {
	t.Parallel()
	m := Shop()
	m.Services = append(m.Services, voucherService)
	p := startEmbedded(t, embeddedConfig(t), m, Commands, Relay, Views, Lake, Admin) // queries would need the SQL engine
	commands := client.New(p.Addr(), time.Minute)
	defer commands.Close()

	issue := &examplev1.IssueVoucherRequest{Code: "SPRING", Uses: 2, IdempotencyKey: "issue"}
	for _, replayed := range []bool{false, true} {
		receipt, err := commands.Send(t.Context(), issue)
		if err != nil || receipt.GetReplayed() != replayed {
			t.Fatalf("issue: %v, %v; want a receipt, replayed: %v", receipt, err, replayed)
		}
	}
	redeem := &examplev1.RedeemVoucherRequest{Code: "SPRING"}
	for range issue.Uses {
		if _, err := commands.Send(t.Context(), redeem); err != nil {
			t.Fatal(err)
		}
	}
	_, err := commands.Send(t.Context(), redeem)
	if refusal, ok := client.Refusal(err); !ok || refusal.GetRule() != "voucher_used_up" {
		t.Fatalf("a third use of two: %v", err)
	}

	admin := adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())
	stream, err := admin.Verify(t.Context(),
		connect.NewRequest(&adminv1.VerifyRequest{Wait: durationpb.New(time.Minute)}))
	if err != nil {
		t.Fatal(err)
	}
	var result *adminv1.VerifyResult
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil {
		t.Fatal(err)
	}
	if !result.GetEqual() || len(result.GetAggregates()) != len(m.Services)+len(m.Sources) {
		t.Fatalf("verify: %v", result)
	}
	vouchers := result.GetAggregates()[len(m.Services)-1]
	var sides []string
	for _, s := range vouchers.GetSides() {
		if sides = append(sides, s.GetSide()); s.GetCount() != 3 {
			t.Errorf("%s has %d events, want 3", s.GetSide(), s.GetCount())
		}
	}
	if want := []string{"store example", "topic millrace.vouchers",
		"table vouchers_events"}; !slices.Equal(sides, want) {
		t.Errorf("%s was compared in %q, want %q", vouchers.GetAggregate(), sides, want)
	}

	status, err := admin.Status(t.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	landed := slices.ContainsFunc(status.Msg.GetSinks(), func(s *adminv1.SinkStatus) bool {
		return s.GetSink() == "table vouchers_events" && s.GetCount() == 3
	})
	if !landed {
		t.Errorf("status lacks the table: %v", status.Msg.GetSinks())
	}
}

// TestStopAndStart checks that a process stops completely, so that the next one gets its folder and
// data.
func TestStopAndStart(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	m := Modules{Services: []Service{voucherService}}
	p := startEmbedded(t, c, m, Commands, Relay)
	send := func(p *App, code string) {
		t.Helper()
		commands := client.New(p.Addr(), time.Minute)
		defer commands.Close()
		if _, err := commands.Send(t.Context(), &examplev1.IssueVoucherRequest{Code: code, Uses: 1}); err != nil {
			t.Fatal(err)
		}
	}
	send(p, "ONE")
	polltest.Until(t, "ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	if _, err := start(t.Context(), m, c, []Role{Commands}, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "in use by another millrace process") {
		t.Errorf("a second process in the same folder: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Failed():
		t.Error("a process that was stopped has failed")
	default:
	}

	p = startEmbedded(t, c, m, Commands, Relay)
	send(p, "TWO")
	stats, err := p.stores[voucher.Name].Stats(t.Context(), event.Position{})
	if err != nil || stats.Events != 2 {
		t.Errorf("the store has %d events, %v; want 2", stats.Events, err)
	}
}

// TestRolesStartTheirParts checks that a process starts exactly what its roles need.
func TestRolesStartTheirParts(t *testing.T) {
	t.Parallel()
	p := startEmbedded(t, embeddedConfig(t), Modules{Services: []Service{voucherService}}, Commands)
	if len(p.stores) != 1 || p.Addr() == "" || p.AdminAddr() == "" {
		t.Errorf("stores %v, addresses %q and %q: want one store and both", p.stores, p.Addr(), p.AdminAddr())
	}
	if p.admin != nil || p.lake != nil || p.sql != nil || len(p.relays) > 0 || len(p.views) > 0 {
		t.Error("it has more than commands need")
	}
	if status := get(t, p, "/readyz"); status != http.StatusOK {
		t.Errorf("/readyz answers %d", status)
	}
}

// TestModuleThatFailsToStart checks that a view which cannot be opened fails the start. The error
// names it, and everything that was started is stopped.
func TestModuleThatFailsToStart(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	broken := Modules{Services: []Service{voucherService}, Views: []View{{
		Name: "vouchers/v1", Feeds: []Feed{{Aggregate: voucher}},
		Open: func(context.Context, *Sinks, string) (OpenView, error) { return nil, errors.New("disk on fire") },
	}}}
	if _, err := start(t.Context(), broken, c, []Role{Commands, Views}, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "vouchers/v1: disk on fire") {
		t.Fatalf("start: %v", err)
	}
	startEmbedded(t, c, Modules{Services: broken.Services}, Commands, Views)
}

// TestModuleThatFails checks that a part which ends stops the process, and that the error names
// it.
func TestModuleThatFails(t *testing.T) {
	t.Parallel()
	for want, outcome := range map[string]error{"view vouchers/v1: disk on fire": errors.New("disk on fire"),
		"view vouchers/v1: ended unexpectedly": nil} {
		p, err := start(t.Context(), Modules{Services: []Service{voucherService}}, embeddedConfig(t), []Role{Commands},
			slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		p.background("view vouchers/v1", func(context.Context) error { return outcome })
		<-p.Failed()
		if err := p.Close(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Close: %v, want %q", err, want)
		}
	}
}
