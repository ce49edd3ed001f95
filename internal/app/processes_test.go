package app

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/gen/millrace/identity/v1/identityv1connect"
	"github.com/millrace/millrace/internal/polltest"
)

// TestIdentifyEventsLink checks the way of an identify event from the listener to the identity graph.
// A trait is an identifier if the tracking plan says so. A link that was taken back stays so.
func TestIdentifyEventsLink(t *testing.T) {
	t.Parallel()
	const (
		one   = "019b8d73-dfa0-77b3-b48c-0c15d9771524"
		other = "019b8d73-dfa0-77b3-b48c-0c15d9771525"
		third = "019b8d73-dfa0-77b3-b48c-0c15d9771526"
	)
	c := embeddedConfig(t)
	c.Tracking.Plan = filepath.Join(t.TempDir(), "plan.yaml")
	plan := "unplanned: true\nidentify: {properties: {email: {type: string, identifier: email_hash}}}\n"
	if err := os.WriteFile(c.Tracking.Plan, []byte(plan), 0o600); err != nil {
		t.Fatal(err)
	}
	var m Modules
	for _, s := range Shop().Services {
		if s.Aggregate.Name == "identity" {
			m.Services = append(m.Services, s)
		}
	}
	m.Sources, m.Processes = Shop().Sources, Shop().Processes
	run := func(test func(p *App, links func(customer string) int)) {
		p, err := start(t.Context(), m, c, []Role{Commands, Relay, Views, Tracking}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}()
		polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
		graph := identityv1connect.NewIdentityServiceClient(http.DefaultClient, "http://"+p.Addr())
		test(p, func(customer string) int {
			res, err := graph.GetLinks(t.Context(), connect.NewRequest(&identityv1.GetLinksRequest{CustomerId: customer}))
			if err != nil {
				t.Fatal(err)
			}
			return len(res.Msg.GetIdentifiers())
		})
	}
	identify := func(p *App, id, customer, anonymous string) {
		body := fmt.Sprintf(`{"messageId":%q,"userId":%q,"anonymousId":%q,"traits":{"email":"Ada@example.com"}}`,
			id, customer, anonymous)
		if got := track(t, p, "/v1/identify", "demo-write-key", body); got != http.StatusOK {
			t.Fatalf("identify: %d", got)
		}
	}
	run(func(p *App, links func(string) int) {
		identify(p, "1", one, "browser")
		polltest.Until(t, "the browser and the address are linked", func() bool { return links(one) == 2 })
		// A browser joins nobody; an address may.
		identify(p, "2", other, "browser")
		polltest.Until(t, "the link of the browser is refused", func() bool {
			return strings.Contains(metrics(t, p), "\nmillrace_identification_outcomes_total{outcome=\"refused\"} 1\n")
		})
		polltest.Until(t, "the address is linked", func() bool { return links(other) == 1 })
		graph := identityv1connect.NewIdentityServiceClient(http.DefaultClient, "http://"+p.Addr())
		_, err := graph.UnlinkIdentifiers(t.Context(), connect.NewRequest(&identityv1.UnlinkIdentifiersRequest{
			CustomerId: one, Identifiers: []*identityv1.IdentifierKey{{
				Kind: identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, Value: "browser"}},
		}))
		if err != nil || links(one) != 1 {
			t.Fatalf("unlink: %v, %d links", err, links(one))
		}
	})
	// Without the positions, all events are delivered again.
	if err := os.RemoveAll(filepath.Join(c.Data, "redis")); err != nil {
		t.Fatal(err)
	}
	run(func(p *App, links func(string) int) {
		identify(p, "3", third, "tablet")
		polltest.Until(t, "everything is read again", func() bool { return links(third) == 2 })
		// The browser is free now, so the link is made that was refused.
		polltest.Until(t, "the second event is read again", func() bool { return links(other) == 2 })
		// The links of the first event were answered before, so they are not made again.
		if links(one) != 1 {
			t.Errorf("%d links, want 1", links(one))
		}
	})
}

// metrics returns the metrics of a process, in Prometheus' text format.
func metrics(t *testing.T, p *App) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.AdminAddr()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err := res.Body.Close(); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
