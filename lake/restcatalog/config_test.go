package restcatalog_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/lake/restcatalog"
)

// New names the setting that it refuses.
func TestNewReportsInvalidSettings(t *testing.T) {
	t.Parallel()
	good := onSQLite(t).Config
	for want, change := range map[string]func(*restcatalog.Config){
		"required":       func(c *restcatalog.Config) { c.Swapper = nil },
		"neither file":   func(c *restcatalog.Config) { c.Warehouse = "/folder" },
		"prefix":         func(c *restcatalog.Config) { c.Prefix = "a/b" },
		"secret key":     func(c *restcatalog.Config) { c.Access.ReadKeys.AccessKey = "key" },
		"below 0":        func(c *restcatalog.Config) { c.Access.TokenLifetime = -1 },
		"gs://bucket/x":  func(c *restcatalog.Config) { c.Warehouse = "gs://bucket/x" },
		"required.":      func(c *restcatalog.Config) { c.Logger = nil },
		"are required":   func(c *restcatalog.Config) { c.Catalog = nil },
		"warehouse \"\"": func(c *restcatalog.Config) { c.Warehouse = "" },
	} {
		c := good
		change(&c)
		if _, err := restcatalog.New(c); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, ".")) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// Everything that config lists is served, under the prefix that clients are told to use and without
// it.
func TestConfig(t *testing.T) {
	t.Parallel()
	p := withPrefix(t).serve(t)
	var c struct {
		Defaults, Overrides map[string]string
		Endpoints           []string
	}
	p.must(t, http.StatusOK, http.MethodGet, "/v1/config?warehouse="+catalogName, nil).into(t, &c)
	p.must(t, http.StatusOK, http.MethodGet, "/v1/config?warehouse="+url.QueryEscape(p.Warehouse+"/"), nil)
	if c.Overrides["prefix"] != "shop" || len(c.Defaults) != 0 || len(c.Endpoints) != 18 {
		t.Errorf("%+v", c)
	}
	for _, e := range c.Endpoints {
		method, path, _ := strings.Cut(e, " ")
		path = strings.NewReplacer("{namespace}", "n", "{table}", "t").Replace(path)
		for _, way := range []string{strings.Replace(path, "/{prefix}", "/shop", 1), strings.Replace(path, "/{prefix}", "", 1)} {
			if a := p.call(t, method, way, nil); method != http.MethodHead && strings.Contains(a.body, "does not serve") {
				t.Errorf("%s %s: %d %s", method, way, a.status, a.body)
			}
		}
	}
}

// The server works behind another path, beside other services of a listener.
func TestPathPrefix(t *testing.T) {
	t.Parallel()
	p := onSQLite(t)
	h, err := restcatalog.New(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/iceberg/", http.StripPrefix("/iceberg", h))
	p.serveAs(t, mux)
	p.url += "/iceberg"
	c := p.client(t)
	if err := c.CreateNamespace(t.Context(), []string{"a", "b"}, nil); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.CheckNamespaceExists(t.Context(), []string{"a", "b"}); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

// The pages together have every entry once, while other entries are added and removed.
func TestPaging(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("t%d", i)
		p.create(t, name)
		p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces", object{"namespace": []string{"shop", name}})
		want = append(want, name)
	}
	type list struct {
		Identifiers []struct{ Name string }
		Namespaces  [][]string
		Next        string `json:"next-page-token"`
	}
	for path, names := range map[string]func(list) []string{
		"/v1/namespaces/shop/tables?": func(l list) (names []string) {
			for _, i := range l.Identifiers {
				names = append(names, i.Name)
			}
			return names
		},
		"/v1/namespaces?parent=shop&": func(l list) (names []string) {
			for _, n := range l.Namespaces {
				names = append(names, n[1])
			}
			return names
		},
	} {
		var got []string
		query := url.Values{"pageSize": {"3"}, "pageToken": {""}}
		for pages := 1; ; pages++ {
			var l list
			p.must(t, http.StatusOK, http.MethodGet, path+query.Encode(), nil).into(t, &l)
			if len(names(l)) > 3 {
				t.Errorf("%s: a page of %v", path, names(l))
			}
			got = append(got, names(l)...)
			if l.Next == "" {
				if pages != 3 {
					t.Errorf("%s: %d pages", path, pages)
				}
				break
			}
			query.Set("pageToken", l.Next)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		var l list
		p.must(t, http.StatusOK, http.MethodGet, path, nil).into(t, &l)
		if !slices.Equal(names(l), want) || l.Next != "" {
			t.Errorf("%s at once: %+v", path, l)
		}
	}
	var first, rest list
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop/tables?pageSize=3", nil).into(t, &first)
	p.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/t2", nil) // the last of that page
	p.create(t, "s")                                                                         // before it
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop/tables?pageToken="+first.Next, nil).into(t, &rest)
	if len(rest.Identifiers) != 4 || rest.Identifiers[0].Name != "t3" {
		t.Errorf("the rest is %+v", rest)
	}
	var top list
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces", nil).into(t, &top)
	if len(top.Namespaces) != 1 || !slices.Equal(top.Namespaces[0], []string{"shop"}) {
		t.Errorf("at the top: %v", top.Namespaces)
	}
}

// Properties of a namespace are set, removed and used for new tables.
func TestNamespaceProperties(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	var summary map[string][]string
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/properties", object{"updates": object{"a": "1", "b": "2"}, "removals": []string{"none"}}).into(t, &summary)
	slices.Sort(summary["updated"])
	if !maps.EqualFunc(summary, map[string][]string{"updated": {"a", "b"}, "removed": {}, "missing": {"none"}}, slices.Equal) {
		t.Errorf("%v", summary)
	}
	location := p.Warehouse + "/elsewhere"
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/properties", object{"updates": object{"location": location}, "removals": []string{"a"}})
	if is := p.create(t, "a"); !strings.HasPrefix(is.Metadata.Location, location+"/a-") {
		t.Errorf("location %s", is.Metadata.Location)
	}
	var n struct{ Properties map[string]string }
	p.must(t, http.StatusOK, http.MethodGet, "/v1/namespaces/shop", nil).into(t, &n)
	if !maps.Equal(n.Properties, map[string]string{"b": "2", "location": location}) {
		t.Errorf("%v", n.Properties)
	}
}

// Clients of a bucket get its address, and on request keys. No others get keys, and no log or file
// contains them.
func TestCredentials(t *testing.T) {
	t.Parallel()
	p := onS3(t).serve(t).withNamespace(t)
	const table = "/v1/namespaces/shop/tables/a"
	var plain, vended, staged shown
	p.create(t, "a")
	a := p.must(t, http.StatusOK, http.MethodGet, table, nil)
	a.into(t, &plain)
	place := map[string]string{"s3.endpoint": p.Storage.Endpoint + "/", "s3.region": p.Storage.Region, "client.region": p.Storage.Region, "s3.path-style-access": "true"}
	if !maps.Equal(plain.Config, place) || plain.Credentials != nil || strings.Contains(a.body, p.Access.WriteKeys.SecretKey) {
		t.Errorf("%s", a.body)
	}
	keys := maps.Clone(place)
	keys["s3.access-key-id"], keys["s3.secret-access-key"] = p.Access.WriteKeys.AccessKey, p.Access.WriteKeys.SecretKey
	asks := []string{"X-Iceberg-Access-Delegation", "remote-signing, vended-credentials"}
	a = p.must(t, http.StatusOK, http.MethodGet, table, nil, asks...)
	a.into(t, &vended)
	p.must(t, http.StatusOK, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "b", "schema": columns, "stage-create": true}, asks...).into(t, &staged)
	for _, s := range []shown{vended, staged} {
		if !maps.Equal(s.Config, keys) || len(s.Credentials) != 1 || !maps.Equal(s.Credentials[0].Config, keys) || !strings.HasPrefix(s.Metadata.Location, s.Credentials[0].Prefix) {
			t.Errorf("%+v", s)
		}
	}
	if a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", a.header)
	}
	var other, local shown
	p.must(t, http.StatusOK, http.MethodGet, table, nil, "X-Iceberg-Access-Delegation", "remote-signing").into(t, &other)
	if !maps.Equal(other.Config, place) {
		t.Errorf("for another way: %v", other.Config)
	}
	var loaded shown
	p.must(t, http.StatusOK, http.MethodGet, table+"/credentials", nil).into(t, &loaded)
	if len(loaded.Credentials) != 1 || !maps.Equal(loaded.Credentials[0].Config, keys) {
		t.Errorf("%+v", loaded)
	}
	if a := p.must(t, http.StatusOK, http.MethodGet, "/v1/config", nil); strings.Contains(a.body, p.Access.WriteKeys.SecretKey) || !strings.Contains(a.body, p.Storage.Endpoint) {
		t.Errorf("%s", a.body)
	}
	if _, err := appendRow(t, p.client(t), "a", 1); err != nil { // with the keys that it was given
		t.Error(err)
	}
	if meta := p.must(t, http.StatusOK, http.MethodGet, table, nil).body; strings.Contains(meta, p.Access.WriteKeys.SecretKey) || strings.Contains(p.log.String(), p.Access.WriteKeys.SecretKey) {
		t.Error("the secret is in the metadata or in the log")
	}
	p.must(t, http.StatusNoContent, http.MethodDelete, table+"?purgeRequested=true", nil)

	folder := onSQLite(t).serve(t).withNamespace(t)
	folder.create(t, "a")
	folder.must(t, http.StatusOK, http.MethodGet, table, nil, asks...).into(t, &local)
	if len(local.Config) != 0 || local.Credentials != nil {
		t.Errorf("in a folder: %+v", local)
	}
	if a := folder.must(t, http.StatusOK, http.MethodGet, table+"/credentials", nil); strings.TrimSpace(a.body) != `{"storage-credentials":[]}` {
		t.Errorf("in a folder: %s", a.body)
	}
}

// Clients' reports are accepted, and their filters are not logged.
func TestReportMetrics(t *testing.T) {
	t.Parallel()
	p := onSQLite(t).serve(t).withNamespace(t)
	p.create(t, "a")
	p.must(t, http.StatusNoContent, http.MethodPost, "/v1/namespaces/shop/tables/a/metrics", object{"report-type": "scan-report", "filter": "name = 'somebody'"})
	if log := p.log.String(); !strings.Contains(log, "scan-report") || strings.Contains(log, "somebody") {
		t.Errorf("%s", log)
	}
}
