package app

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// A process whose SQL engine does not start works without it, and says why.
func TestWithoutEngine(t *testing.T) {
	t.Parallel()
	p := startEmbedded(t, embeddedConfig(t), Modules{Services: []Service{voucherService}}, Commands)
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.Command, c.Patient, c.Logger = []string{"sh", "-c", "echo no space; exit 1"}, true, slog.New(slog.DiscardHandler)
	if p.child, err = clickhouse.StartEngine(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	p.onStop(p.child.Close)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.AdminAddr()+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "degraded\nthe SQL engine does not run: ") {
		t.Errorf("/readyz: %d %q, %v", res.StatusCode, body, err)
	}
	status, err := p.Status(t.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
	if err != nil || !strings.Contains(status.Msg.SqlEngine, "no space") {
		t.Errorf("status %v, %v", status, err)
	}
}
