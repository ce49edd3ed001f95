package restcatalog_test

import (
	"net/http"
	"testing"
)

// New locations mean the same to every engine. Whatever a client calls a table, the catalog chooses
// such a location.
func TestNewLocationsHaveNoEscapes(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	for _, folder := range []string{"my table", "tàb", "q?r#s", "per%20cent", "a*b", "[a]", "it's", "a;b", "a|b", "🎉"} {
		at := p.Warehouse + "/shop.db/" + folder
		if a := p.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "t", "schema": columns, "location": at}); a.status/100 != 4 {
			t.Errorf("a table at %s: status %d", at, a.status)
		}
		if a := p.call(t, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"n"}, "properties": object{"location": at}}); a.status/100 != 4 {
			t.Errorf("a namespace at %s: status %d", at, a.status)
		}
	}
	p.create(t, "a")
	a := p.call(t, http.MethodPost, "/v1/namespaces/shop/tables/a", object{"requirements": []object{},
		"updates": []object{{"action": "set-location", "location": p.Warehouse + "/shop.db/my table"}}})
	if a.status/100 != 4 {
		t.Errorf("moved: status %d", a.status)
	}
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "my täble", "schema": columns})
}
