package restcatalog_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/restcatalog"
)

// Every call requires a right. A caller without it gets the protocol's error before anything is
// looked up.
func TestRights(t *testing.T) {
	t.Parallel()
	p := guarded(t).serve(t)
	if err := p.sql.CreateNamespace(t.Context(), []string{"shop"}, nil); err != nil {
		t.Fatal(err)
	}
	const namespace, table = "/v1/namespaces/shop", "/v1/namespaces/shop/tables/a"
	update := object{"requirements": []any{}, "updates": []any{object{"action": "set-properties", "updates": object{"a": "1"}}}}
	in := func(body object) object {
		body["identifier"] = object{"namespace": []string{"shop"}, "name": "a"}
		return body
	}
	for _, c := range []struct {
		method, path string
		body         any
		needs        restcatalog.Right
	}{
		{http.MethodPost, namespace + "/tables", object{"name": "a", "schema": columns}, restcatalog.Write}, // first, and so on
		{http.MethodGet, "/v1/config", nil, restcatalog.Read},
		{http.MethodGet, "/v1/namespaces", nil, restcatalog.Read},
		{http.MethodGet, namespace, nil, restcatalog.Read},
		{http.MethodHead, namespace, nil, restcatalog.Read},
		{http.MethodGet, namespace + "/tables", nil, restcatalog.Read},
		{http.MethodGet, namespace + "/views", nil, restcatalog.Read},
		{http.MethodGet, table, nil, restcatalog.Read},
		{http.MethodHead, table, nil, restcatalog.Read},
		{http.MethodGet, table + "/credentials", nil, restcatalog.Read},
		{http.MethodPost, table + "/metrics", object{"report-type": "scan-report"}, restcatalog.Read},
		{http.MethodPost, table, update, restcatalog.Write},
		{http.MethodPost, "/v1/transactions/commit", object{"table-changes": []any{in(object{"requirements": []any{}, "updates": update["updates"]})}}, restcatalog.Write},
		{http.MethodPost, "/v1/namespaces", object{"namespace": []string{"other"}}, restcatalog.Admin},
		{http.MethodPost, "/v1/namespaces/other/properties", object{"updates": object{"a": "1"}}, restcatalog.Admin},
		{http.MethodPost, "/v1/tables/rename", object{"source": object{"namespace": []string{"shop"}, "name": "a"}, "destination": object{"namespace": []string{"shop"}, "name": "b"}}, restcatalog.Admin},
		{http.MethodPost, namespace + "/register", object{"name": "c", "metadata-location": "elsewhere"}, restcatalog.Admin},
		{http.MethodDelete, namespace + "/tables/b", nil, restcatalog.Admin},
		{http.MethodDelete, "/v1/namespaces/other", nil, restcatalog.Admin},
	} {
		for _, caller := range []struct {
			name string
			has  restcatalog.Right
		}{{"dora", restcatalog.None}, {"bert", restcatalog.Read}, {"carl", restcatalog.Write}, {"anna", restcatalog.Admin}} {
			a := p.call(t, c.method, c.path, c.body, "Authorization", "Bearer "+tokenOf(caller.name))
			refused := a.status == http.StatusForbidden && (c.method == http.MethodHead || strings.Contains(a.body, "auth.rights"))
			if refused != (caller.has < c.needs) {
				t.Errorf("%s %s by a caller with the right %s: %d %s", c.method, c.path, caller.has, a.status, a.body)
			}
			if refused && c.method != http.MethodHead && (a.kind(t) != "ForbiddenException" || !strings.Contains(a.body, caller.name)) {
				t.Errorf("%s %s: %s", c.method, c.path, a.body)
			}
			if caller.has == c.needs && a.status >= 300 && !strings.Contains(c.path, "register") {
				t.Errorf("%s %s by a caller with the right %s: %d %s", c.method, c.path, caller.has, a.status, a.body)
			}
		}
	}
}

// A caller with rights to single tables can list and load only these. It gets no keys, because keys
// give access to all tables.
func TestTableRights(t *testing.T) {
	t.Parallel()
	p := guarded(t)
	p.Access.ReadKeys, p.Access.WriteKeys = restcatalog.Keys{AccessKey: "reads", SecretKey: "r"}, restcatalog.Keys{AccessKey: "writes", SecretKey: "w"}
	p.Access.Tables = map[string]restcatalog.TableRights{"dora": {
		On: func(name table.Identifier) restcatalog.Right {
			return map[string]restcatalog.Right{"shop.seen": restcatalog.Read, "shop.written": restcatalog.Write, "shop.owned": restcatalog.Admin, "shop.renamed": restcatalog.Admin}[strings.Join(name, ".")]
		},
		Within: func(namespace table.Identifier) bool { return namespace[0] == "shop" },
	}}
	p.serve(t)
	for _, namespace := range []string{"shop", "other"} {
		if err := p.sql.CreateNamespace(t.Context(), []string{namespace}, nil); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"seen", "written", "owned", "hidden"} {
			p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/"+namespace+"/tables", object{"name": name, "schema": columns}, "Authorization", "Bearer "+anna)
		}
	}
	as := func(method, path string, body any) answer {
		return p.call(t, method, path, body, "Authorization", "Bearer "+tokenOf("dora"), "X-Iceberg-Access-Delegation", "vended-credentials")
	}
	if a := as(http.MethodGet, "/v1/namespaces", nil); strings.Contains(a.body, "other") || !strings.Contains(a.body, "shop") {
		t.Errorf("namespaces: %d %s", a.status, a.body)
	}
	if a := as(http.MethodGet, "/v1/namespaces/shop/tables", nil); strings.Contains(a.body, "hidden") || !strings.Contains(a.body, "seen") || !strings.Contains(a.body, "owned") {
		t.Errorf("tables: %d %s", a.status, a.body)
	}
	if a := as(http.MethodGet, "/v1/namespaces/shop/tables/written", nil); a.status != http.StatusOK || strings.Contains(a.body, "access-key") || strings.Contains(a.body, "writes") {
		t.Errorf("a table, with keys: %d %s", a.status, a.body)
	}
	if a := as(http.MethodGet, "/v1/namespaces/shop/tables/seen/credentials", nil); a.status != http.StatusOK || strings.Contains(a.body, "access-key") {
		t.Errorf("keys: %d %s", a.status, a.body)
	}
	changes := []any{object{"action": "set-properties", "updates": object{"a": "1"}}}
	change := func(names ...string) object {
		var all []any
		for _, name := range names {
			all = append(all, object{"identifier": object{"namespace": []string{"shop"}, "name": name}, "requirements": []any{}, "updates": changes})
		}
		return object{"table-changes": all}
	}
	rename := func(from, to string) object {
		return object{"source": object{"namespace": []string{"shop"}, "name": from}, "destination": object{"namespace": []string{"shop"}, "name": to}}
	}
	update := object{"requirements": []any{}, "updates": changes}
	for _, c := range []struct {
		method, path string
		body         any
		may          bool
	}{
		{http.MethodGet, "/v1/config", nil, true},
		{http.MethodGet, "/v1/namespaces/shop", nil, true},
		{http.MethodHead, "/v1/namespaces/shop", nil, true},
		{http.MethodGet, "/v1/namespaces/other", nil, false},
		{http.MethodHead, "/v1/namespaces/other", nil, false},
		{http.MethodGet, "/v1/namespaces/other/tables", nil, false},
		{http.MethodGet, "/v1/namespaces/other/tables/seen", nil, false},
		{http.MethodGet, "/v1/namespaces/shop/tables/seen", nil, true},
		{http.MethodHead, "/v1/namespaces/shop/tables/seen", nil, true},
		{http.MethodGet, "/v1/namespaces/shop/tables/hidden", nil, false},
		{http.MethodHead, "/v1/namespaces/shop/tables/hidden", nil, false},
		{http.MethodGet, "/v1/namespaces/shop/tables/hidden/credentials", nil, false},
		{http.MethodPost, "/v1/namespaces/shop/tables/seen/metrics", object{"report-type": "scan-report"}, true},
		{http.MethodPost, "/v1/namespaces/shop/tables/hidden/metrics", object{"report-type": "scan-report"}, false},
		{http.MethodPost, "/v1/namespaces/shop/tables/seen", update, false},
		{http.MethodPost, "/v1/namespaces/shop/tables/written", update, true},
		{http.MethodPost, "/v1/transactions/commit", change("written", "owned"), true},
		{http.MethodPost, "/v1/transactions/commit", change("written", "seen"), false},
		{http.MethodPost, "/v1/transactions/commit", change("hidden"), false},
		{http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "new", "schema": columns}, false},
		{http.MethodPost, "/v1/namespaces/shop/register", object{"name": "new", "metadata-location": "file:///x"}, false},
		{http.MethodPost, "/v1/tables/rename", rename("hidden", "renamed"), false},
		{http.MethodPost, "/v1/tables/rename", rename("owned", "hidden2"), false},
		{http.MethodPost, "/v1/tables/rename", rename("owned", "renamed"), true},
		{http.MethodDelete, "/v1/namespaces/shop/tables/written", nil, false},
		{http.MethodDelete, "/v1/namespaces/shop/tables/hidden", nil, false},
		{http.MethodDelete, "/v1/namespaces/shop/tables/renamed", nil, true},
		{http.MethodPost, "/v1/namespaces", object{"namespace": []string{"shop2"}}, false},
		{http.MethodPost, "/v1/namespaces/shop/properties", object{"updates": object{"a": "1"}}, false},
		{http.MethodDelete, "/v1/namespaces/shop", nil, false},
	} {
		a := as(c.method, c.path, c.body)
		if refused := a.status == http.StatusForbidden; refused == c.may || c.may && a.status >= 300 {
			t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
		}
	}
}

// The names of rights are parsed back. Others are refused with the valid ones.
func TestParseRight(t *testing.T) {
	t.Parallel()
	for _, r := range []restcatalog.Right{restcatalog.None, restcatalog.Read, restcatalog.Write, restcatalog.Admin} {
		if got, err := restcatalog.ParseRight(r.String()); got != r || err != nil {
			t.Errorf("%s: %s, %v", r, got, err)
		}
	}
	if _, err := restcatalog.ParseRight("all"); err == nil || !strings.Contains(err.Error(), "admin") {
		t.Errorf("error %v", err)
	}
}

// A read-only caller never gets write keys.
func TestKeysFollowRights(t *testing.T) {
	t.Parallel()
	read, write := restcatalog.Keys{AccessKey: "reads", SecretKey: "r"}, restcatalog.Keys{AccessKey: "writes", SecretKey: "w"}
	for name, c := range map[string]struct {
		read, write restcatalog.Keys
		want        map[string]string // key by caller; none: no credentials
	}{
		"both":         {read, write, map[string]string{"bert": "reads", "carl": "writes", "anna": "writes"}},
		"to read with": {read, restcatalog.Keys{}, map[string]string{"bert": "reads", "carl": "reads", "anna": "reads"}},
		"to write":     {restcatalog.Keys{}, write, map[string]string{"carl": "writes", "anna": "writes"}},
		"none":         {},
	} {
		p := guarded(t)
		p.Warehouse = "s3://bucket/folder" // nothing is read there
		p.Access.ReadKeys, p.Access.WriteKeys = c.read, c.write
		p.serve(t)
		if err := p.sql.CreateNamespace(t.Context(), []string{"shop"}, nil); err != nil {
			t.Fatal(err)
		}
		staged := object{"name": "a", "schema": columns, "stage-create": true}
		for _, caller := range []string{"carl", "anna"} {
			var s shown
			p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", staged,
				"Authorization", "Bearer "+tokenOf(caller), "X-Iceberg-Access-Delegation", "vended-credentials").into(t, &s)
			if s.Config["s3.access-key-id"] != c.want[caller] || len(s.Credentials) == 1 != (c.want[caller] != "") {
				t.Errorf("%s, %s is given %+v", name, caller, s)
			}
		}
	}
}

// Another client cannot turn a table into something that its owner refuses.
func TestGuard(t *testing.T) {
	t.Parallel()
	p := onSQLite(t)
	p.Guard = func(name table.Identifier, before, after table.Metadata) error {
		if before == nil { // it is new
			return nil
		}
		if name[1] == "kept" && (after == nil || after.Properties()["a"] != before.Properties()["a"]) {
			return errors.New("it is kept")
		}
		return nil
	}
	p.Drop = func(name table.Identifier, _ table.Metadata) error {
		if name[1] == "kept" {
			return errors.New("it is kept")
		}
		return nil
	}
	p.serve(t).withNamespace(t)
	p.create(t, "kept")
	p.create(t, "free")
	const kept, free = "/v1/namespaces/shop/tables/kept", "/v1/namespaces/shop/tables/free"
	set := func(key string) object {
		return object{"requirements": []any{}, "updates": []any{object{"action": "set-properties", "updates": iceberg.Properties{key: "1"}}}}
	}
	var is shown
	p.must(t, http.StatusOK, http.MethodGet, free, nil).into(t, &is)
	rename := func(name string) object {
		return object{"source": object{"namespace": []string{"shop"}, "name": name}, "destination": object{"namespace": []string{"shop"}, "name": "other"}}
	}
	change := func(name, key string) object {
		c := set(key)
		c["identifier"] = object{"namespace": []string{"shop"}, "name": name}
		return c
	}
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{http.MethodPost, kept, set("a")},
		{http.MethodPost, "/v1/transactions/commit", object{"table-changes": []any{change("free", "b"), change("kept", "a")}}},
		{http.MethodPost, "/v1/tables/rename", rename("kept")},
		{http.MethodPost, "/v1/namespaces/shop/register", object{"name": "kept", "metadata-location": is.File, "overwrite": true}},
		{http.MethodDelete, kept + "?purgeRequested=true", nil},
		{http.MethodDelete, kept, nil},
	} {
		a := p.must(t, http.StatusForbidden, c.method, c.path, c.body)
		if a.kind(t) != "ForbiddenException" || !strings.Contains(a.body, "shop.kept: it is kept") {
			t.Errorf("%s %s: %s", c.method, c.path, a.body)
		}
	}
	if a := p.must(t, http.StatusOK, http.MethodGet, free, nil); strings.Contains(a.body, `"b":"1"`) {
		t.Error("the other half of a transaction was done")
	}
	p.must(t, http.StatusOK, http.MethodPost, kept, set("c"))
	p.must(t, http.StatusNotFound, http.MethodPost, "/v1/tables/rename", rename("nothing"))
	p.must(t, http.StatusNoContent, http.MethodPost, "/v1/tables/rename", rename("free"))
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/other?purgeRequested=true", nil)
}
