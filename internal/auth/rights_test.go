package auth_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/auth"
)

func TestRights(t *testing.T) {
	t.Parallel()
	all := []auth.Right{
		"commands.order", "commands.catalog", "commands.customer", "commands.inventory", "queries.order",
		"queries.customer",
		"sql.orders_events", "sql.order_lines", "sql.web.clicks", "catalog.read", "catalog.write", "catalog.admin",
		"operations", "profiles",
	}
	tables := []auth.Right{"catalog.read.orders", "catalog.write.orders", "catalog.read.web.clicks",
		"catalog.write.web.clicks", "catalog.admin.web.clicks", "catalog.read"}
	for given, want := range map[string]string{
		"catalog.read":                              "catalog.read.orders catalog.read.web.clicks catalog.read",
		"catalog":                                   "catalog.read.orders catalog.write.orders catalog.read.web.clicks catalog.write.web.clicks catalog.admin.web.clicks catalog.read",
		"catalog.read.orders":                       "catalog.read.orders",
		"catalog.read.order":                        "",
		"catalog.write.orders":                      "catalog.read.orders catalog.write.orders",
		"catalog.write.web.*":                       "catalog.read.web.clicks catalog.write.web.clicks",
		"catalog.admin.web.clicks":                  "catalog.read.web.clicks catalog.write.web.clicks catalog.admin.web.clicks",
		"catalog.read.*":                            "catalog.read.orders catalog.read.web.clicks",
		"catalog.read.orders catalog.write.web.*":   "catalog.read.orders catalog.read.web.clicks catalog.write.web.clicks",
		"sql.orders sql.web.*":                      "",
		"catalog.read.or* commands queries sql":     "catalog.read.orders",
		"catalog.read.web.clicks2 catalog.read.web": "",
	} {
		r, err := auth.ParseRights(strings.Fields(given))
		if err != nil {
			t.Errorf("%q: %v", given, err)
		}
		var got []string
		for _, right := range tables {
			if r.Allow(right) {
				got = append(got, string(right))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q allows %v, want %s", given, got, want)
		}
	}
	for given, want := range map[string]string{
		"":                        "",
		"all":                     "commands.order commands.catalog commands.customer commands.inventory queries.order queries.customer sql.orders_events sql.order_lines sql.web.clicks catalog.read catalog.write catalog.admin operations profiles",
		"commands":                "commands.order commands.catalog commands.customer commands.inventory",
		"commands.order":          "commands.order",
		"queries.customer":        "queries.customer",
		"sql":                     "sql.orders_events sql.order_lines sql.web.clicks",
		"sql.order_lines":         "sql.order_lines",
		"sql.order":               "",
		"sql.order*":              "sql.orders_events sql.order_lines",
		"sql.web.*":               "sql.web.clicks",
		"sql.*":                   "sql.orders_events sql.order_lines sql.web.clicks",
		"catalog":                 "catalog.read catalog.write catalog.admin",
		"catalog.read":            "catalog.read",
		"catalog.write":           "catalog.read catalog.write",
		"operations":              "operations",
		"profiles":                "profiles",
		"commands.order profiles": "commands.order profiles",
	} {
		r, err := auth.ParseRights(strings.Fields(given))
		if err != nil {
			t.Errorf("%q: %v", given, err)
		}
		var got []string
		for _, right := range all {
			if r.Allow(right) {
				got = append(got, string(right))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q allows %v, want %s", given, got, want)
		}
	}
	for _, bad := range []string{"", "everything", "Commands", "commands.", "commands.payment", "queries.orderstatus",
		"sql.", "catalog.drop", "catalog.drop.a", "catalog.read.", "catalog.", "operations.verify", "profiles.heap",
		"*", "commands.*"} {
		if _, err := auth.ParseRights([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// An additional right never removes another, and the right to a surface includes its parts.
func TestRightsOnlyAdd(t *testing.T) {
	t.Parallel()
	surfaces := []string{auth.Commands, auth.Queries, auth.SQL, auth.Catalog, auth.Operations, auth.Profiles}
	given := rapid.SliceOf(rapid.SampledFrom(append(slices.Clone(surfaces), "all", "commands.order", "queries.catalog",
		"sql.a", "sql.a*", "catalog.read", "catalog.write", "catalog.read.a", "catalog.admin.a*")))
	rapid.Check(t, func(t *rapid.T) {
		few := given.Draw(t, "few")
		more := append(slices.Clone(few), given.Draw(t, "more")...)
		wanted := auth.Right(rapid.SampledFrom([]string{"commands.order", "queries.catalog", "sql.a", "sql.ab", "sql.b",
			"catalog.read", "catalog.admin", "catalog.read.a", "catalog.write.ab", "operations"}).Draw(t, "wanted"))
		a, err1 := auth.ParseRights(few)
		b, err2 := auth.ParseRights(more)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if a.Allow(wanted) && !b.Allow(wanted) {
			t.Errorf("%v allow %s, %v do not", few, wanted, more)
		}
		surface, _, _ := strings.Cut(string(wanted), ".")
		if slices.Contains(few, surface) && !a.Allow(wanted) {
			t.Errorf("%v do not allow %s", few, wanted)
		}
		if a.Allow(wanted) && !a.Any(surface) {
			t.Errorf("%v allow %s, and nothing of it", few, wanted)
		}
	})
}

// A caller without an entry has no rights, and a handler without a Guard lets no request pass.
func TestNeed(t *testing.T) {
	t.Parallel()
	tokens, err := auth.Open(file(t, "anna:"+anna+"\nbert:"+bert+"\n"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	rights, err := auth.ParseRights([]string{"commands.order"})
	if err != nil {
		t.Fatal(err)
	}
	tokens.Grant(map[string]auth.Rights{"anna": rights})
	handler := auth.Need(func(*http.Request) auth.Right { return "commands.order" },
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, auth.CallerOf(r.Context()))
		}))
	var nobody *auth.Tokens
	for name, c := range map[string]struct {
		handler http.Handler
		token   string
		status  int
		says    string
	}{
		"who has the right":     {tokens.Guard(handler), anna, http.StatusOK, "anna"},
		"who has none":          {tokens.Guard(handler), bert, http.StatusForbidden, `bert does not have the right "commands.order": grant it in auth.rights`},
		"no token":              {tokens.Guard(handler), "", http.StatusUnauthorized, "no token: send"},
		"where nobody is asked": {nobody.Guard(handler), "", http.StatusOK, ""},
		"without a guard":       {handler, anna, http.StatusForbidden, "this caller"},
	} {
		for contentType, code := range map[string]string{"text/plain": "", "application/json": `"permission_denied"`} {
			r := httptest.NewRequestWithContext(context.Background(), http.MethodPost,
				"/millrace.order.v1.OrderService/PlaceOrder", strings.NewReader("{}"))
			r.Header.Set("Content-Type", contentType)
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			w := httptest.NewRecorder()
			c.handler.ServeHTTP(w, r)
			body := strings.ReplaceAll(w.Body.String(), `\"`, `"`)
			if w.Code != c.status || !strings.Contains(body, c.says) || c.status == http.StatusForbidden &&
				!strings.Contains(body, code) {
				t.Errorf("%s, %s: %d %s", name, contentType, w.Code, body)
			}
		}
	}
}
