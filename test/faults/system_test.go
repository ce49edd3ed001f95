package faults

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/config"
)

// proxied is a server behind a proxy.
type proxied struct {
	name  string
	proxy *toxiproxy.Proxy
}

// fail makes a fault. Data in both directions is affected, also of open connections.
func (p *proxied) fail(f fault) error {
	if f.toxic == "" {
		p.proxy.Stop()
		return nil
	}
	for _, stream := range []string{"upstream", "downstream"} {
		toxic := fmt.Sprintf(`{"name":%q,"stream":%q,%s`, stream, stream, strings.TrimPrefix(f.toxic, "{"))
		if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			return fmt.Errorf("%s of %s: %w", f.name, p.name, err)
		}
	}
	return nil
}

// heal ends the fault.
func (p *proxied) heal() error {
	p.proxy.Toxics.ResetToxics(context.Background())
	if !p.proxy.Enabled {
		return p.proxy.Start()
	}
	return nil
}

// system is a running system, and the servers that it uses.
type system struct {
	api, admin string // URLs
	servers    []*proxied
}

// startSystem starts a system whose store, views and lake are on real servers. The log is embedded.
func startSystem(t *testing.T) *system {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	s := &system{}
	// through returns the address of a proxy to a server.
	through := func(name, upstream string) (addr string) {
		p := toxiproxy.NewProxy(server, name, "127.0.0.1:0", upstream)
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		s.servers = append(s.servers, &proxied{name, p})
		return p.Listen
	}

	c := config.Default()
	c.Data = filepath.Join(t.TempDir(), "data")
	c.Addr, c.Admin.Addr, c.Tracking.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Kafka.Listen, c.ClickHouse.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.Lake.CommitInterval = 200 * time.Millisecond
	engine, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.ClickHouse.Library = engine.Library

	c.Store.Postgres = behind(t, role(t), func(at string) string { return through("PostgreSQL", at) })
	c.Store.Password = config.SecretText(password)
	c.Redis.Addr = through("Redis", cache.Addr(t))
	c.Search.Elasticsearch = behind(t, search.URL(t), func(at string) string { return through("Elasticsearch", at) })
	store := objects.Config(t)
	c.Lake.S3.Endpoint = behind(t, store.Endpoint, func(at string) string { return through("S3", at) })
	c.Lake.S3.Region, c.Lake.S3.AccessKey = store.Region, store.AccessKey
	c.Lake.S3.SecretKey = config.SecretText(store.SecretKey)
	c.Lake.Warehouse = "s3://" + store.Bucket + "/warehouse"

	p, err := app.Start(t.Context(), c, app.Roles(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	s.api, s.admin = "http://"+p.Addr(), "http://"+p.AdminAddr()
	return s
}

// behind returns a URL with the address of a proxy to its host.
func behind(t *testing.T, at string, through func(host string) string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = through(u.Host)
	return u.String()
}

const password = "a password of the tests"

// role creates a role and a database, and returns the connection string.
func role(t *testing.T) string {
	t.Helper()
	super := database.ConnString(t)
	for _, statement := range []string{"CREATE ROLE millrace LOGIN PASSWORD '" + password + "'",
		"CREATE DATABASE millrace OWNER millrace"} {
		out, err := exec.CommandContext(t.Context(), "psql", super, "-v", "ON_ERROR_STOP=1", "-c", statement).CombinedOutput()
		if err != nil {
			t.Fatalf("psql: %v: %s", err, out)
		}
	}
	return database.TLS("millrace", "millrace")
}
