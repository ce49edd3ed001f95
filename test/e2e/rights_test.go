package e2e

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRights calls every surface of a running system as callers with each right. Each must be
// allowed what it was granted, and be told which right is missing for the rest.
func TestRights(t *testing.T) {
	t.Parallel()
	callers := map[string]string{
		"nobody":   "", // has a token, but no rights
		"shop":     "commands, queries",
		"orders":   "commands.order",
		"support":  "queries.order, queries.customer",
		"analyst":  "sql",
		"partner":  "sql.order_lines",
		"trino":    "catalog.read",
		"writer":   "catalog.write",
		"lines":    "catalog.read.order_lines",
		"operator": "operations",
		"profiler": "profiles",
		"owner":    "all",
	}
	token := func(name string) string { return name + "-0123456789-0123456789" }
	var tokens string
	var rights []string
	for name, list := range callers {
		tokens += name + ":" + token(name) + "\n"
		if list != "" {
			rights = append(rights, name+": ["+list+"]")
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "tokens")
	if err := os.WriteFile(file, []byte(tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	s := upOn(t, []string{"MILLRACE_AUTH_TOKENS=" + file, "MILLRACE_AUTH_RIGHTS={" + strings.Join(rights, ", ") + "}"},
		filepath.Join(dir, "data"), "127.0.0.1:0", "--no-demo")
	s.ready()

	const id = "0198c5a0-7c1e-7abc-8def-0123456789ab"
	const order = `{"orderId":"` + id + `","currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`
	type call struct{ method, path, contentType, body string }
	connect := func(method, body string) call { return call{http.MethodPost, "/" + method, "application/json", body} }
	sql := func(query string) call {
		return call{http.MethodPost, "/v1/sql", "application/sql", query}
	}
	get := func(path string) call { return call{http.MethodGet, path, "", ""} }
	send := func(c call, caller string) (int, string) {
		t.Helper()
		addr := s.addr
		if strings.HasPrefix(c.path, "/debug") || strings.HasPrefix(c.path, "/millrace.admin") {
			addr = s.admin
		}
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+addr+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", c.contentType)
		r.Header.Set("Authorization", "Bearer "+token(caller))
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}

	for name, c := range map[string]struct {
		call
		may string // besides the owner
	}{
		"place an order":        {connect("millrace.order.v1.OrderService/PlaceOrder", order), "shop orders"},
		"list a product":        {connect("millrace.catalog.v1.CatalogService/ListProduct", "{}"), "shop"},
		"receive stock":         {connect("millrace.inventory.v1.InventoryService/ReceiveStock", "{}"), "shop"},
		"an unknown method":     {connect("millrace.order.v1.OrderService/DropOrders", "{}"), "shop orders"},
		"see an order":          {connect("millrace.order.v1.OrderQueryService/GetOrder", `{"orderId":"`+id+`"}`), "shop support"},
		"by GET":                {get("/millrace.order.v1.OrderQueryService/GetOrder?encoding=json&message=" + url.QueryEscape(`{"orderId":"`+id+`"}`)), "shop support"},
		"search products":       {connect("millrace.catalog.v1.CatalogQueryService/SearchProducts", `{}`), "shop"},
		"see a customer":        {connect("millrace.customer.v1.CustomerService/GetCustomer", `{"customerId":"`+id+`"}`), "shop support"},
		"see a customer by GET": {get("/millrace.customer.v1.CustomerService/GetCustomer?encoding=json&base64=1&message=" + base64.RawURLEncoding.EncodeToString([]byte(`{"customerId":"`+id+`"}`))), "shop support"},
		"stock":                 {connect("millrace.inventory.v1.InventoryService/GetStock", `{"sku":"MUG"}`), "shop"},
		"one table":             {sql("SELECT count() FROM order_lines"), "analyst partner"},
		"one table as it was":   {call{http.MethodPost, "/v1/sql?as_of=" + url.QueryEscape("1s"), "application/sql", "SELECT count() FROM order_lines"}, "analyst partner"},
		"another table":         {sql("SELECT count() FROM orders_events"), "analyst"},
		"personal data":         {sql("SELECT * FROM order_lines, customers_events"), "analyst"},
		"the engine":            {sql("SELECT query FROM system.processes"), "analyst"},
		"the catalog's config":  {get("/iceberg/v1/config"), "trino writer lines"},
		"the tables' names":     {sql("SHOW TABLES"), "analyst partner"},
		"no table at all":       {sql("SELECT 1"), "analyst partner"},
		"a profile":             {get("/debug/pprof/profile?seconds=x"), "profiler"},
		"the list of profiles":  {get("/debug/pprof/"), "profiler"},
		"to verify":             {call{http.MethodPost, "/millrace.admin.v1.AdminService/Verify", "application/connect+json", "\x00\x00\x00\x00\x0e{\"wait\":\"x.s\"}"}, "operator"},
		"an unknown operation":  {connect("millrace.admin.v1.AdminService/Nothing", "{}"), "operator"},
		"the catalog":           {get("/iceberg/v1/namespaces"), "trino writer lines"},
		"a table of it":         {get("/iceberg/v1/namespaces/millrace/tables/order_lines"), "trino writer lines"},
		"another table of it":   {get("/iceberg/v1/namespaces/millrace/tables/customers_events"), "trino writer"},
		"a commit to it":        {connect("iceberg/v1/namespaces/millrace/tables/order_lines", `{"requirements":[],"updates":[]}`), "writer"},
		"a namespace":           {call{http.MethodPost, "/iceberg/v1/namespaces", "application/json", `{"namespace":["web"]}`}, ""},
		"status":                {connect("millrace.admin.v1.AdminService/Status", "{}"), "operator"},
		"the heap":              {get("/debug/pprof/heap"), "profiler"},
		"the command line":      {get("/debug/pprof/cmdline"), "profiler"},
		"goroutines":            {get("/debug/pprof/goroutine?debug=1"), "profiler"},
	} {
		for caller := range callers {
			status, body := send(c.call, caller)
			may := caller == "owner" || slices.Contains(strings.Fields(c.may), caller)
			// The error of a stream follows a status of success.
			if refused := status == http.StatusForbidden || strings.Contains(body,
				`"permission_denied"`); refused == may {
				t.Errorf("%s by %s: %d %s", name, caller, status, body)
			} else if refused && !strings.Contains(body, "auth.rights") {
				t.Errorf("%s by %s: the rejection does not name the setting for rights: %s", name, caller, body)
			}
			if status == http.StatusUnauthorized || status >= 500 {
				t.Errorf("%s by %s: %d %s", name, caller, status, body)
			}
		}
	}
	for _, parameters := range []string{"?as_off=-1s", "?outputs=csv", "?output=csv&output=json"} {
		if status, body := send(call{http.MethodPost, "/v1/sql" + parameters, "application/sql", "SELECT 1"},
			"owner"); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", parameters, status, body)
		}
	}
	misspelt := connect("millrace.admin.v1.AdminService/Status", `{"al":true}`)
	if status, body := send(misspelt, "owner"); status != http.StatusBadRequest || !strings.Contains(body,
		"al: unknown field") {
		t.Errorf("status with an unknown field: %d %s", status, body)
	}
	s.stop()
}
