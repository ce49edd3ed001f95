package restcatalog_test

import (
	"net/http"
	"strings"
	"testing"
)

// Every error has the status and the type by which clients decide, and a message about the problem.
func TestErrors(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "a")
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"outer"}})
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"outer", "inner"}})
	const (
		get, post, del = http.MethodGet, http.MethodPost, http.MethodDelete
		tables         = "/v1/namespaces/shop/tables"
	)
	ident := func(parts ...string) object {
		return object{"namespace": parts[:len(parts)-1], "name": parts[len(parts)-1]}
	}
	commit := func(requirements, updates string) string {
		return `{"requirements":` + requirements + `,"updates":` + updates + `}`
	}
	for _, c := range []struct {
		name, method, path string
		body               any
		status             int
		kind, says         string
	}{
		{"no such path", get, "/v1/nothing", nil, 404, "NotFoundException", "/v1/nothing"},
		{"no such method", del, "/v1/config", nil, 404, "NotFoundException", "DELETE"},
		{"another warehouse", get, "/v1/config?warehouse=other", nil, 400, "BadRequestException", "warehouse"},
		{"no namespace", get, "/v1/namespaces/none", nil, 404, "NoSuchNamespaceException", "none"},
		{"no parent", get, "/v1/namespaces?parent=none", nil, 404, "NoSuchNamespaceException", "none"},
		{"page size", get, "/v1/namespaces?pageSize=0", nil, 400, "BadRequestException", "pageSize"},
		{"page token", get, "/v1/namespaces?pageToken=!", nil, 400, "BadRequestException", "pageToken"},
		{"page token that decodes", get, "/v1/namespaces?pageSize=2&pageToken=garbagee", nil, 400, "BadRequestException", "pageToken"},
		{"page token of text", get, "/v1/namespaces?pageToken=c2hvcA", nil, 400, "BadRequestException", "pageToken"},
		{"namespace twice", post, "/v1/namespaces", object{"namespace": []string{"shop"}}, 409, "AlreadyExistsException", "shop"},
		{"namespace without name", post, "/v1/namespaces", object{"namespace": []string{}}, 400, "BadRequestException", "namespace"},
		{"namespace with a slash", post, "/v1/namespaces", object{"namespace": []string{"../x"}}, 400, "BadRequestException", "../x"},
		{"namespace that is a number", post, "/v1/namespaces", object{"namespace": 1}, 400, "BadRequestException", "namespace"},
		{"namespace's reserved property", post, "/v1/namespaces", object{"namespace": []string{"n"}, "properties": object{"exists": "x"}}, 400, "BadRequestException", "exists"},
		{"namespace elsewhere", post, "/v1/namespaces", object{"namespace": []string{"n"}, "properties": object{"location": "file:///etc"}}, 403, "ForbiddenException", "location"},
		{"namespace moved elsewhere", post, "/v1/namespaces/shop/properties", object{"updates": object{"location": "file:///etc"}}, 403, "ForbiddenException", "location"},
		{"namespace with a property of landers", post, "/v1/namespaces/shop/properties", object{"updates": object{"millrace.fault.orders": "x"}}, 403, "ForbiddenException", "millrace.fault.orders"},
		{"set and removed", post, "/v1/namespaces/shop/properties", object{"updates": object{"k": "v"}, "removals": []string{"k"}}, 422, "UnprocessableEntityException", "k"},
		{"namespace with tables", del, "/v1/namespaces/shop", nil, 409, "NamespaceNotEmptyException", "shop"},
		{"namespace with namespaces", del, "/v1/namespaces/outer", nil, 409, "NamespaceNotEmptyException", "inner"},
		{"drop no namespace", del, "/v1/namespaces/none", nil, 404, "NoSuchNamespaceException", "none"},
		{"tables of no namespace", get, "/v1/namespaces/none/tables", nil, 404, "NoSuchNamespaceException", "none"},
		{"no table", get, tables + "/none", nil, 404, "NoSuchTableException", "none"},
		{"table of no namespace", get, "/v1/namespaces/none/tables/a", nil, 404, "NoSuchTableException", "none"},
		{"credentials of no table", get, tables + "/none/credentials", nil, 404, "NoSuchTableException", ""},
		{"snapshots", get, tables + "/a?snapshots=some", nil, 400, "BadRequestException", "snapshots"},
		{"table twice", post, tables, object{"name": "a", "schema": columns}, 409, "AlreadyExistsException", "shop.a"},
		{"staged twice", post, tables, object{"name": "a", "schema": columns, "stage-create": true}, 409, "AlreadyExistsException", "shop.a"},
		{"table in no namespace", post, "/v1/namespaces/none/tables", object{"name": "a", "schema": columns}, 404, "NoSuchNamespaceException", "none"},
		{"table without schema", post, tables, object{"name": "b"}, 400, "BadRequestException", "schema"},
		{"table without name", post, tables, object{"schema": columns}, 400, "BadRequestException", "name"},
		{"table with a long name", post, tables, object{"name": strings.Repeat("t", 3000), "schema": columns}, 400, "BadRequestException", "3000 bytes"},
		{"table with a name a byte too long", post, tables, object{"name": strings.Repeat("t", 201), "schema": columns}, 400, "BadRequestException", "201 bytes"},
		{"namespace with a long name", post, "/v1/namespaces", object{"namespace": []string{strings.Repeat("n", 3000)}}, 400, "BadRequestException", "3000 bytes"},
		{"namespace with many parts", post, "/v1/namespaces", object{"namespace": []string{"outer", strings.Repeat("n", 199)}}, 400, "BadRequestException", "205 bytes"},
		{"load a long name", get, tables + "/" + strings.Repeat("t", 3000), nil, 404, "NoSuchTableException", ""},
		{"table with slashes", post, tables, object{"name": "../b", "schema": columns}, 400, "BadRequestException", "../b"},
		{"table by a column that is not", post, tables, object{"name": "b", "schema": columns, "partition-spec": object{"fields": []object{{"source-id": 99, "transform": "identity", "name": "x"}}}}, 400, "BadRequestException", "99"},
		{"table of another format", post, tables, object{"name": "b", "schema": columns, "properties": object{"format-version": "9"}}, 400, "BadRequestException", "9"},
		{"not JSON", post, tables, `{"name":`, 400, "BadRequestException", "body"},
		{"not an object", post, tables, `[]`, 400, "BadRequestException", "body: got array, want object"},
		{"not JSON, and where", post, tables, "{\n  \"name\": x}", 400, "BadRequestException", "line 2, column 11"},
		{"ends early, and where", post, "/v1/namespaces", "{\"namespace\":\n[\"a\"", 400, "BadRequestException", "line 2"},
		{"a number for a name", post, tables, `{"name":7}`, 400, "BadRequestException", "name: got number, want string"},
		{"a text for a list", post, "/v1/namespaces", `{"namespace":"shop"}`, 400, "BadRequestException", "namespace: got string, want array"},
		{"a text for true", post, tables, `{"name":"b","stage-create":"yes"}`, 400, "BadRequestException", "stage-create: got string, want bool"},
		{"a list for an object", post, tables, `{"name":"b","properties":[]}`, 400, "BadRequestException", "properties: got array, want object"},
		{"a schema that is a number", post, tables, `{"name":"b","schema":1}`, 400, "BadRequestException", ""},
		{"a field of a type that is none", post, tables, `{"name":"b","schema":{"type":"struct","fields":[{"id":1,"name":"a","type":"wide","required":false}]}}`, 400, "BadRequestException", ""},
		{"a field with an id that is a text", post, tables, `{"name":"b","schema":{"type":"struct","fields":[{"id":"one","name":"a","type":"int","required":false}]}}`, 400, "BadRequestException", ""},
		{"requirements that are an object", post, tables + "/a", commit(`{}`, `[]`), 400, "BadRequestException", "requirements"},
		{"updates that are texts", post, tables + "/a", commit(`[]`, `["a"]`), 400, "BadRequestException", "updates"},
		{"an id beyond 64 bits", post, tables + "/a", commit(`[{"type":"assert-ref-snapshot-id","ref":"main","snapshot-id":1e99}]`, `[]`), 400, "BadRequestException", "want an integer"},
		{"commit without requirements", post, tables + "/a", `{"updates":[]}`, 400, "BadRequestException", "requirements"},
		{"commit without updates", post, tables + "/a", `{"requirements":[]}`, 400, "BadRequestException", "updates"},
		{"unknown requirement", post, tables + "/a", commit(`[{"type":"assert-weather"}]`, `[]`), 400, "BadRequestException", "requirements"},
		{"unknown update", post, tables + "/a", commit(`[]`, `[{"action":"dance"}]`), 400, "BadRequestException", "updates"},
		{"requirement that lacks a field", post, tables + "/a", commit(`[{"type":"assert-table-uuid"}]`, `[]`), 400, "BadRequestException", "uuid"},
		{"update that lacks a field", post, tables + "/a", commit(`[]`, `[{"action":"set-location"}]`), 400, "BadRequestException", "location"},
		{"update that does not fit", post, tables + "/a", commit(`[]`, `[{"action":"set-current-schema","schema-id":99}]`), 400, "BadRequestException", "99"},
		{"another table", post, tables + "/a", `{"identifier":{"namespace":["shop"],"name":"b"},"requirements":[],"updates":[]}`, 400, "BadRequestException", "identifier"},
		{"stale snapshot", post, tables + "/a", commit(`[{"type":"assert-ref-snapshot-id","ref":"main","snapshot-id":5}]`, `[]`), 409, "CommitFailedException", "main"},
		{"stale table", post, tables + "/a", commit(`[{"type":"assert-table-uuid","uuid":"00000000-0000-0000-0000-000000000001"}]`, `[]`), 409, "CommitFailedException", "UUID"},
		{"stale sequence number", post, tables + "/a", commit(`[]`, `[{"action":"add-snapshot","snapshot":{"snapshot-id":1,"parent-snapshot-id":2,"sequence-number":0,"timestamp-ms":2000000000000,"manifest-list":"x","summary":{"operation":"append"},"schema-id":0}}]`), 409, "CommitFailedException", "sequence number"},
		{"commit to no table", post, tables + "/none", commit(`[]`, `[]`), 404, "NoSuchTableException", "none"},
		{"assert of no table", post, tables + "/none", commit(`[{"type":"assert-current-schema-id","current-schema-id":0}]`, `[]`), 404, "NoSuchTableException", "none"},
		{"create by commit in no namespace", post, "/v1/namespaces/none/tables/a", commit(`[{"type":"assert-create"}]`, `[]`), 404, "NoSuchNamespaceException", "none"},
		{"create by commit of nothing", post, tables + "/b", commit(`[{"type":"assert-create"}]`, `[]`), 400, "BadRequestException", "updates"},
		{"rename none", post, "/v1/tables/rename", object{"source": ident("shop", "none"), "destination": ident("shop", "b")}, 404, "NoSuchTableException", "none"},
		{"rename onto another", post, "/v1/tables/rename", object{"source": ident("shop", "a"), "destination": ident("shop", "a")}, 409, "AlreadyExistsException", ""},
		{"rename into no namespace", post, "/v1/tables/rename", object{"source": ident("shop", "a"), "destination": ident("none", "a")}, 404, "NoSuchNamespaceException", "none"},
		{"rename to nothing", post, "/v1/tables/rename", object{"source": ident("shop", "a")}, 400, "BadRequestException", "destination"},
		{"rename to a path", post, "/v1/tables/rename", object{"source": ident("shop", "a"), "destination": ident("shop", "../b")}, 400, "BadRequestException", "destination"},
		{"drop none", del, tables + "/none", nil, 404, "NoSuchTableException", "none"},
		{"purge none", del, tables + "/none?purgeRequested=true", nil, 404, "NoSuchTableException", "none"},
		{"purge perhaps", del, tables + "/a?purgeRequested=perhaps", nil, 400, "BadRequestException", "purgeRequested"},
		{"empty transaction", post, "/v1/transactions/commit", object{}, 400, "BadRequestException", "table-changes"},
		{"transaction of no table", post, "/v1/transactions/commit", object{"table-changes": []object{{"requirements": []object{}, "updates": []object{}}}}, 400, "BadRequestException", "table-changes[0].identifier"},
		{"transaction of no sense", post, "/v1/transactions/commit", object{"table-changes": []object{{"identifier": ident("shop", "a"), "requirements": []object{}, "updates": []object{{"action": "dance"}}}}}, 400, "BadRequestException", "table-changes[0].updates"},
		{"metrics of no kind", post, tables + "/a/metrics", object{}, 400, "BadRequestException", "report-type"},
		{"no view", get, "/v1/namespaces/shop/views/v", nil, 404, "NoSuchViewException", "v"},
		{"create a view", post, "/v1/namespaces/shop/views", object{"name": "v"}, 406, "UnsupportedOperationException", "views"},
		{"rename a view", post, "/v1/views/rename", object{}, 406, "UnsupportedOperationException", "views"},
		{"views of no namespace", get, "/v1/namespaces/none/views", nil, 404, "NoSuchNamespaceException", ""},
		{"too large", post, tables, strings.Repeat(" ", 33<<20), 413, "BadRequestException", "bytes"},
		{"too deep", post, tables + "/a", commit(`[]`, strings.Repeat("[", 20000)), 400, "BadRequestException", ""},
	} {
		a := p.call(t, c.method, c.path, c.body)
		if a.status != c.status || a.kind(t) != c.kind || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s; want %d %s, and that it says %q", c.name, a.status, a.body, c.status, c.kind, c.says)
		}
		for _, ours := range []string{"json:", "Go value", "Go struct", "runtime error", "strconv.", "restcatalog.", "table.", "iceberg.", "interface {}", "reflect"} {
			if strings.Contains(strings.ReplaceAll(a.body, "shop/tables", ""), ours) {
				t.Errorf("%s: the message is about Go: %s", c.name, a.body)
			}
		}
	}
	if a := p.call(t, post, "/v1/namespaces", object{"namespace": []string{"n"}}, "Content-Type", "text/plain"); a.status != http.StatusBadRequest || a.kind(t) != "BadRequestException" {
		t.Errorf("as a browser's page sends it: %d %s", a.status, a.body)
	}
	for _, path := range []string{"/v1/namespaces/none", tables + "/none"} { // without a body
		if a := p.call(t, http.MethodHead, path, nil); a.status != http.StatusNotFound || a.body != "" {
			t.Errorf("HEAD %s: %d %q", path, a.status, a.body)
		}
	}
	if is := p.load(t, "a"); !strings.Contains(is.File, "/00000-") {
		t.Errorf("one of these changed the table: %s", is.File)
	}
	if n := len(p.files(t)); n != 1 {
		t.Errorf("they left %d files", n)
	}
}

// Clients cannot place a table, or have one of its files written, outside of the warehouse.
func TestLocationsEscape(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "a")
	for _, location := range []string{
		"file:///etc", "/etc", "s3://bucket/x", "x", p.Warehouse, p.Warehouse + "/", p.Warehouse + "-beside/x", p.Warehouse + "/../x", p.Warehouse + "/a/../../x",
		p.Warehouse + "/%2e%2e/x", p.Warehouse + "/a//b", p.Warehouse + "/a?b", p.Warehouse + "/a#b", "http://127.0.0.1/x", p.Warehouse + `/..\x`, p.Warehouse + "/./x",
	} {
		for name, a := range map[string]answer{
			"create":   p.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "b", "schema": columns, "location": location}),
			"stage":    p.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "b", "schema": columns, "location": location, "stage-create": true}),
			"register": p.call(t, http.MethodPost, "/v1/namespaces/shop/register", object{"name": "b", "metadata-location": location}),
			"commit": p.call(t, http.MethodPost, "/v1/namespaces/shop/tables/a", object{"requirements": []object{},
				"updates": []object{{"action": "set-location", "location": location}}}),
			"metadata path": p.call(t, http.MethodPost, "/v1/namespaces/shop/tables/a", object{"requirements": []object{},
				"updates": []object{{"action": "set-properties", "updates": object{"write.metadata.path": location}}}}),
			"transaction": p.call(t, http.MethodPost, "/v1/transactions/commit", object{"table-changes": []object{{
				"identifier": object{"namespace": []string{"shop"}, "name": "a"}, "requirements": []object{},
				"updates": []object{{"action": "set-location", "location": location}}}}}),
		} {
			if a.status != http.StatusForbidden || a.kind(t) != "ForbiddenException" {
				t.Errorf("%s at %s: %d %s", name, location, a.status, a.body)
			}
		}
	}
	p.must(t, http.StatusNotFound, http.MethodHead, "/v1/namespaces/shop/tables/b", nil)
}
