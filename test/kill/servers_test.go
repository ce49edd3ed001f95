package kill

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/commands/eventstore"
	pgstore "github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/test/servers/clickhouse"
	"github.com/millrace/millrace/test/servers/elasticsearch"
	"github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/redis"
	"github.com/millrace/millrace/test/servers/s3"
)

// servers are the real servers of a system.
type servers struct {
	postgres postgres.Cluster
	kafka    kafka.Cluster
	redis    redis.Servers
	search   elasticsearch.Server
	s3       s3.Server
	s3faults *s3.Proxy
	tables   clickhouse.Server // of features
}

// startReal starts every server, a link to each, and a process for each role.
func startReal(ctx context.Context, dir string) (*system, error) { return startProcesses(ctx, dir, 1) }

// startProcesses starts every server, a link to each, and some processes for each role.
func startProcesses(ctx context.Context, dir string, each int) (_ *system, err error) {
	s := &system{dir: dir, ledger: newLedger(), servers: &servers{}, links: map[string][]*link{},
		roles: map[string]*role{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	if s.recorder, err = startRecorder(s.ledger); err != nil {
		return nil, err
	}
	for _, start := range []func() error{
		s.startPostgres, s.startKafka, s.startRedis, s.startSearch, s.startS3, s.startClickHouse,
	} {
		if err := start(); err != nil {
			return nil, err
		}
	}
	s.env = append(append(s.env, "MILLRACE_LOG_LEVEL=warn", "MILLRACE_COMMANDS_CURRENCIES={GBP: 3}", bisectEnv),
		slices.Concat(onlineEnv, maintenanceEnv)...)
	for _, name := range realRoles {
		for n := range each {
			r := &role{name: nth(name, n), args: []string{"serve", "--role", name}, env: slices.Clip(s.env)}
			r.dir = filepath.Join(dir, r.name)
			if name == "commands" {
				r.recorder = s.recorder
			}
			s.roles[r.name] = r
		}
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// realRoles are the roles that have processes of their own.
var realRoles = []string{"commands", "relay", "views", "lake", "query", "admin", "iceberg", "features", "tracking"}

// nth returns the name of the nth process of a role, from 0.
func nth(role string, n int) string {
	if n == 0 {
		return role
	}
	return fmt.Sprintf("%s-%d", role, n+1)
}

// addLink puts a link in front of a server.
func (s *system) addLink(server string, port int) (*link, error) {
	w, err := newLink(port)
	if err != nil {
		return nil, fmt.Errorf("link to %s: %w", server, err)
	}
	s.links[server] = append(s.links[server], w)
	s.close = append(s.close, func() error {
		w.proxy.Stop()
		return nil
	})
	return w, nil
}

const (
	database = "millrace"
	secret   = "a-password"
)

func (s *system) startPostgres() error {
	pg := &s.servers.postgres
	super, err := pg.Start()
	s.close = append(s.close, pg.Stop)
	if err != nil {
		return err
	}
	for _, statement := range []string{
		"CREATE ROLE millrace LOGIN PASSWORD '" + secret + "'",
		"CREATE DATABASE " + database + " OWNER millrace",
	} {
		out, err := exec.Command("psql", super, "-v", "ON_ERROR_STOP=1", "-c", statement).CombinedOutput()
		if err != nil {
			return fmt.Errorf("psql: %w: %s", err, out)
		}
	}
	direct, err := url.Parse(pg.TLS("millrace", database))
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(direct.Port())
	if err != nil {
		return err
	}
	w, err := s.addLink("postgres", port)
	if err != nil {
		return err
	}
	through := *direct
	through.Host = w.addr()
	s.env = append(s.env, "MILLRACE_STORE_POSTGRES="+through.String(), "MILLRACE_STORE_PASSWORD="+secret,
		"MILLRACE_LAKE_CATALOG="+through.String(), "MILLRACE_LAKE_PASSWORD="+secret)
	direct.User = url.UserPassword("millrace", secret)
	direct.RawQuery += fmt.Sprintf("&connect_timeout=%.0f", callTimeout.Seconds())
	s.openStore = func(ctx context.Context, a event.Aggregate) (eventstore.Store, error) {
		return pgstore.Open(ctx, direct.String(), a, pgstore.WithQueryTimeout(settleTimeout))
	}
	return nil
}

const kafkaNodes = 3

func (s *system) startKafka() error {
	k := &s.servers.kafka
	k.Nodes = kafkaNodes
	k.Advertise = func(_, port int) (int, error) {
		w, err := s.addLink("kafka", port)
		if err != nil {
			return 0, err
		}
		return w.port(), nil
	}
	brokers, err := k.Start()
	s.close = append(s.close, k.Stop)
	s.brokers = brokers
	s.env = append(s.env, "MILLRACE_KAFKA_BROKERS="+brokers, "MILLRACE_KAFKA_REPLICAS="+strconv.Itoa(kafkaNodes))
	return err
}

func (s *system) startRedis() error {
	addr, err := s.servers.redis.Start()
	s.close = append(s.close, s.servers.redis.Stop)
	if err != nil {
		return err
	}
	w, err := s.addLinkTo("redis", addr)
	if err == nil {
		s.env = append(s.env, "MILLRACE_REDIS_ADDR="+w.addr())
	}
	return err
}

func (s *system) startSearch() error {
	base, err := s.servers.search.Start()
	s.close = append(s.close, s.servers.search.Stop)
	if err != nil {
		return err
	}
	w, err := s.addLinkTo("elasticsearch", strings.TrimPrefix(base, "http://"))
	if err == nil {
		s.env = append(s.env, "MILLRACE_SEARCH_ELASTICSEARCH=http://"+w.addr())
	}
	return err
}

func (s *system) startS3() error {
	c, err := s.servers.s3.Start()
	s.close = append(s.close, s.servers.s3.Stop)
	if err != nil {
		return err
	}
	if s.servers.s3faults, err = s3.NewProxy(c.Endpoint); err != nil {
		return err
	}
	s.close = append(s.close, s.servers.s3faults.Close)
	w, err := s.addLinkTo("s3", strings.TrimPrefix(s.servers.s3faults.Endpoint, "http://"))
	if err == nil {
		s.env = append(s.env,
			"MILLRACE_LAKE_WAREHOUSE=s3://"+c.Bucket+"/warehouse",
			"MILLRACE_LAKE_S3_ENDPOINT=http://"+w.addr(), "MILLRACE_LAKE_S3_REGION="+c.Region,
			"MILLRACE_LAKE_S3_ACCESS_KEY="+c.AccessKey, "MILLRACE_LAKE_S3_SECRET_KEY="+c.SecretKey)
	}
	return err
}

func (s *system) startClickHouse() error {
	c, err := s.servers.tables.Start()
	s.close = append(s.close, s.servers.tables.Stop)
	if err != nil {
		return err
	}
	w, err := s.addLinkTo("clickhouse", strings.TrimPrefix(c.URL, "http://"))
	if err == nil {
		s.env = append(s.env, "MILLRACE_CLICKHOUSE_URL=http://"+w.addr(), "MILLRACE_CLICKHOUSE_USER="+c.User,
			"MILLRACE_CLICKHOUSE_PASSWORD="+c.Password)
	}
	return err
}

// addLinkTo puts a link in front of a server at host:port.
func (s *system) addLinkTo(server, addr string) (*link, error) {
	_, text, _ := strings.Cut(addr, ":")
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", server, err)
	}
	return s.addLink(server, port)
}

// startSmallDisk starts the embedded default on a small file system of its own, which can be
// filled.
func startSmallDisk(ctx context.Context, dir string) (*system, error) {
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o750); err != nil {
		return nil, err
	}
	mount := exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", "size="+diskSize, "millrace-kill", disk)
	if out, err := mount.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: mount a small file system: %w: %s", errUnavailable, err, out)
	}
	unmount := func() error {
		out, err := exec.CommandContext(context.WithoutCancel(ctx), "umount", "--lazy", disk).CombinedOutput()
		if err != nil {
			return fmt.Errorf("umount %s: %w: %s", disk, err, out)
		}
		return nil
	}
	s, err := startEmbedded(ctx, disk)
	if err != nil {
		return nil, errors.Join(err, unmount())
	}
	s.close = append(s.close, unmount)
	return s, nil
}

const diskSize = "256m"

// errUnavailable is the error of a row that needs something this machine does not have.
var errUnavailable = errors.New("not possible on this machine")
