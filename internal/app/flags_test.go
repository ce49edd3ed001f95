package app

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/flags"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	flagsv1 "github.com/millrace/millrace/gen/millrace/flags/v1"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/polltest"
)

// TestMaintenanceIsSwitched sets the flag of maintenance by the API, for all tables and then for some.
func TestMaintenanceIsSwitched(t *testing.T) {
	t.Parallel()
	p := startEmbedded(t, embeddedConfig(t), Shop(), Relay, Views, Lake, Admin)
	admin := flagsv1connect.NewFlagServiceClient(http.DefaultClient, "http://"+p.AdminAddr())
	if !p.maintains("orders_events") {
		t.Error("maintenance is off by default")
	}
	listed, err := admin.ListFlags(t.Context(), connect.NewRequest(&flagsv1.ListFlagsRequest{}))
	if err != nil || len(listed.Msg.GetFlags()) != 2 || listed.Msg.GetFlags()[0].GetName() != logSampleFlag ||
		listed.Msg.GetFlags()[1].GetRevision() != flags.Absent || listed.Msg.GetFlags()[1].GetValue() != "true" {
		t.Errorf("before anything is set, the flags are %v, %v", listed, err)
	}
	set := func(req *flagsv1.SetFlagRequest) (*flagsv1.Flag, error) {
		req.Name = maintenanceFlag
		r, err := admin.SetFlag(t.Context(), connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		return r.Msg.GetFlag(), nil
	}
	f, err := set(&flagsv1.SetFlagRequest{Value: new("false"), Reason: "the disk is busy"})
	if err != nil || f.GetType() != "bool" || !f.GetDeclared() {
		t.Fatalf("off: %v, %v", f, err)
	}
	if p.maintains("orders_events") {
		t.Error("maintenance is on after it was switched off")
	}
	// Tables in the first half of the buckets. Others are not maintained.
	if _, err := set(&flagsv1.SetFlagRequest{Variants: []*flagsv1.Variant{
		{Name: "on", Value: "true", Share: 5000}, {Name: "off", Value: "false", Share: 5000}}}); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"orders_events", "order_lines", "stock_movements", "web.clicks"} {
		if on := p.maintains(table); on != (flags.Bucket(maintenanceFlag, table) < 5000) {
			t.Errorf("%s is maintained: %v", table, on)
		}
	}
	for what, c := range map[string]struct {
		req  *flagsv1.SetFlagRequest
		want connect.Code
	}{
		"another type":    {&flagsv1.SetFlagRequest{Type: "int", Value: new("1")}, connect.CodeInvalidArgument},
		"an old revision": {&flagsv1.SetFlagRequest{Value: new("true"), Revision: new(f.GetRevision())}, connect.CodeFailedPrecondition},
	} {
		if _, err := set(c.req); connect.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if _, err := admin.DeleteFlag(t.Context(), connect.NewRequest(&flagsv1.DeleteFlagRequest{Name: maintenanceFlag})); err != nil {
		t.Fatal(err)
	}
	if !p.maintains("orders_events") {
		t.Error("maintenance is off after the flag was deleted")
	}
	history, err := admin.ListFlagHistory(t.Context(), connect.NewRequest(&flagsv1.ListFlagHistoryRequest{Name: maintenanceFlag}))
	if err != nil || len(history.Msg.GetChanges()) != 3 || history.Msg.GetChanges()[0].GetChange().GetReason() != "the disk is busy" {
		t.Errorf("the history is %v, %v", history, err)
	}
}

// TestSampleOfServedVectorsIsRaised starts a process that logs no vectors, and lets it log all.
func TestSampleOfServedVectorsIsRaised(t *testing.T) {
	t.Parallel()
	m := Shop()
	m.Views = nil
	p := startEmbedded(t, embeddedConfig(t), m, Relay, Lake, Features, Admin)
	polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
	vectors := featuresv1connect.NewFeatureServiceClient(http.DefaultClient, "http://"+p.Addr())
	ask := func() {
		t.Helper()
		if _, err := vectors.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{
			Group: shop.Groups(shop.Options{})[0].Name, Entities: []string{uuid.NewString()}})); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	admin := flagsv1connect.NewFlagServiceClient(http.DefaultClient, "http://"+p.AdminAddr())
	if _, err := admin.SetFlag(t.Context(), connect.NewRequest(&flagsv1.SetFlagRequest{Name: logSampleFlag, Value: new("1")})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "a vector is logged", func() bool {
		ask()
		return p.served.Written() > 0
	})
}

// TestFlagsOfCallers changes flags with tokens: the history has who did it, and who may only read flags
// changes none.
func TestFlagsOfCallers(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	c.Auth.Tokens = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(c.Auth.Tokens, []byte("anna:0123456789abcdef-anna\nben:0123456789abcdef-ben\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Auth.Rights = map[string][]string{"anna": {"flags"}, "ben": {"flags.read", "operations", "commands"}}
	p := startEmbedded(t, c, Shop(), Relay, Views, Lake, Admin)
	as := func(token string) flagsv1connect.FlagServiceClient {
		return flagsv1connect.NewFlagServiceClient(http.DefaultClient, "http://"+p.AdminAddr(), connect.WithInterceptors(
			connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
				return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
					r.Header().Set("Authorization", "Bearer "+token)
					return next(ctx, r)
				}
			})))
	}
	anna, ben := as("0123456789abcdef-anna"), as("0123456789abcdef-ben")
	set := &flagsv1.SetFlagRequest{Name: maintenanceFlag, Value: new("false"), Reason: "busy"}
	if _, err := ben.SetFlag(t.Context(), connect.NewRequest(set)); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("ben changes a flag: %v", err)
	}
	if _, err := as("unknown").ListFlags(t.Context(), connect.NewRequest(&flagsv1.ListFlagsRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a stranger lists flags: %v", err)
	}
	if _, err := anna.SetFlag(t.Context(), connect.NewRequest(set)); err != nil {
		t.Fatal(err)
	}
	history, err := ben.ListFlagHistory(t.Context(), connect.NewRequest(&flagsv1.ListFlagHistoryRequest{Name: maintenanceFlag}))
	if err != nil || len(history.Msg.GetChanges()) != 1 || history.Msg.GetChanges()[0].GetChange().GetBy() != "anna" {
		t.Errorf("the history is %v, %v", history, err)
	}
}

// TestFlagRights lists the right of each method.
func TestFlagRights(t *testing.T) {
	t.Parallel()
	const path = "/" + flagsv1connect.FlagServiceName + "/"
	right := flagRight(path)
	for method, want := range map[string]auth.Right{
		"ListFlags": "flags.read", "GetFlag": "flags.read", "ListFlagHistory": "flags.read",
		"SetFlag": "flags.write", "DeleteFlag": "flags.write", "Unknown": "flags.write",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, path+method, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := right(r); got != want {
			t.Errorf("%s needs %s, want %s", method, got, want)
		}
	}
	for _, granted := range []string{"operations", "commands", "queries", "flags.read"} {
		rights, err := auth.ParseRights([]string{granted})
		if err != nil {
			t.Fatal(err)
		}
		if rights.Allow("flags.write") {
			t.Errorf("%s allows to change flags", granted)
		}
	}
}
