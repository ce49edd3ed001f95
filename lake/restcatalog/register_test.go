package restcatalog_test

import (
	"net/http"
	"strings"
	"testing"
)

// A table is not registered if readers would disagree about the names of its files, or if it places
// files elsewhere. Clients choose the file, but the rules still apply.
func TestRegisterUnambiguousLocation(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "one")
	one := p.load(t, "one")
	root := one.Metadata.Location[:strings.LastIndex(one.Metadata.Location, "/")]
	register := func(name, at string, change func(string) string) answer {
		t.Helper()
		file := copyFile(t, one.File, at+"/metadata/00000-0.metadata.json", func(s string) string {
			s = strings.ReplaceAll(s, one.Metadata.Location, at)
			return change(strings.ReplaceAll(s, one.Metadata.UUID, "11111111-1111-4111-8111-"+strings.Repeat("1", 12)))
		})
		return p.call(t, http.MethodPost, "/v1/namespaces/shop/register", object{"name": name, "metadata-location": file})
	}
	for _, folder := range []string{"my table", "tàb", "e\u0301", "🎉", "a%20b", "a?b", "a#b", "glob*", "[x]", `back\slash`, "q\"uote", "a;b", "a|b"} {
		if a := register("second", root+"/"+folder, same); a.status != http.StatusBadRequest && a.status != http.StatusForbidden {
			t.Errorf("%q: %d %s", folder, a.status, a.body)
		}
	}
	for _, key := range []string{"write.data.path", "write.metadata.path", "write.object-storage.path", "write.folder-storage.path"} {
		placed := func(s string) string {
			return strings.Replace(s, `"format-version"`, `"properties":{"`+key+`":"`+one.Metadata.Location+`/data"},"format-version"`, 1)
		}
		if a := register("second", root+"/placed-"+strings.ReplaceAll(key, ".", "-"), placed); a.status != http.StatusForbidden || !strings.Contains(a.body, key) {
			t.Errorf("%s: %d %s", key, a.status, a.body)
		}
	}
	if a := register("second", root+"/plain-2~x", same); a.status != http.StatusOK {
		t.Errorf("a plain one: %d %s", a.status, a.body)
	}
}
