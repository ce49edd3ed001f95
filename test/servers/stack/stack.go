// Package stack starts every real server that Millrace uses, with TLS and passwords if the server
// supports them, and returns the settings for Millrace. The end-to-end tests and `make up-real` use
// it.
//
// A Stack has one server of each kind, from the packages beside this one. Start starts them
// concurrently. Each start function then adds the settings with which Millrace reaches its server.
//
// Passwords are in files, as an operator would configure them, so the tests also cover reading
// secrets from files.
package stack

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/test/servers/elasticsearch"
	"github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/redis"
	"github.com/millrace/millrace/test/servers/registry"
	"github.com/millrace/millrace/test/servers/s3"
)

// Stack is all servers. The zero Stack has one Kafka node and one Redis.
type Stack struct {
	Kafka         kafka.Cluster
	Postgres      postgres.Cluster
	Redis         redis.Servers
	Elasticsearch elasticsearch.Server
	S3            s3.Server
	Registry      registry.Server

	secrets string // folder

	mu sync.Mutex // guards the fields below
	// env is the result of Env, "NAME=value". The order depends on which server starts first.
	env []string
	// costs has an entry for each server that Start has tried, including those that failed.
	costs []Cost
}

// Cost is what a server needs to start and to run.
type Cost struct {
	Server string
	Start  time.Duration // until it was ready
	MB     int           // memory once all servers were up; 0 if unknown
	// stop and mb are the server's methods, for Stop and Costs.
	stop func() error
	mb   func() (int, error)
}

// Passwords of the servers under test.
const (
	// The password has spaces, so a setting that is not quoted or escaped fails.
	database = "millrace"
	password = "a password of the tests"
)

// Start starts all servers concurrently. If one fails, it stops the others.
func (s *Stack) Start() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.secrets, err = os.MkdirTemp("", "millrace-secrets-"); err != nil {
		return err
	}
	var g errgroup.Group
	// Kafka and Redis are measured by their first node, which is the only one of the zero Stack.
	for _, server := range []struct {
		name  string
		start func() error
		stop  func() error
		mb    func() (int, error)
	}{
		{"Apache Kafka", s.startKafka, s.Kafka.Stop, func() (int, error) { return s.Kafka.ResidentMB(0) }},
		{"PostgreSQL", s.startPostgres, s.Postgres.Stop, s.Postgres.ResidentMB},
		{"Redis", s.startRedis, s.Redis.Stop, func() (int, error) { return s.Redis.ResidentMB(0) }},
		{"Elasticsearch", s.startElasticsearch, s.Elasticsearch.Stop, s.Elasticsearch.ResidentMB},
		{"versitygw (S3)", s.startS3, s.S3.Stop, s.S3.ResidentMB},
		{"Apicurio Registry", s.startRegistry, s.Registry.Stop, s.Registry.ResidentMB},
	} {
		g.Go(func() error {
			begun := time.Now()
			err := server.start()
			s.mu.Lock()
			defer s.mu.Unlock()
			// Record the server even if it failed: Stop must also clean up a start that got half
			// way.
			s.costs = append(s.costs,
				Cost{Server: server.name, Start: time.Since(begun), stop: server.stop, mb: server.mb})
			if err != nil {
				return fmt.Errorf("%s: %w", server.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Stop stops all servers and removes their data. It must not run concurrently with Start.
func (s *Stack) Stop() error {
	var errs []error
	for _, c := range s.costs {
		errs = append(errs, c.stop())
	}
	s.costs = nil
	return errors.Join(append(errs, os.RemoveAll(s.secrets))...)
}

// Env returns the environment variables with which Millrace reaches the servers, as "NAME=value".
// Secrets are in files. Call it after Start.
func (s *Stack) Env() []string { return s.env }

// Costs returns how long the servers took to start, and their current memory.
func (s *Stack) Costs() []Cost {
	for i := range s.costs {
		s.costs[i].MB, _ = s.costs[i].mb() // 0 if unknown
	}
	return s.costs
}

// set adds settings of Millrace, as alternating names and values.
func (s *Stack) set(settings ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i < len(settings); i += 2 {
		s.env = append(s.env, "MILLRACE_"+settings[i]+"="+settings[i+1]) //nolint:gosec // names and values come in pairs
	}
}

// secret writes a text into a file.
func (s *Stack) secret(name, text string) (path string, err error) {
	path = filepath.Join(s.secrets, name)
	return path, os.WriteFile(path, []byte(text+"\n"), 0o600)
}

func (s *Stack) startKafka() error {
	s.Kafka.Secure = true
	if _, err := s.Kafka.Start(); err != nil {
		return err
	}
	brokers, access := s.Kafka.SecureAccess(security.ScramSHA512)
	file, err := s.secret("kafka", access.Password)
	s.set("KAFKA_BROKERS", brokers, "KAFKA_TLS_ENABLED", "true", "KAFKA_TLS_CA", access.CAFile,
		"KAFKA_SASL_MECHANISM", access.Mechanism, "KAFKA_SASL_USER", access.Username, "KAFKA_SASL_PASSWORD_FILE", file)
	return err
}

func (s *Stack) startPostgres() error {
	// The superuser's connection, over the Unix socket, is only for creating an ordinary role.
	// Millrace connects as that role, over TLS.
	super, err := s.Postgres.Start()
	if err != nil {
		return err
	}
	for _, statement := range []string{"CREATE ROLE millrace LOGIN PASSWORD '" + password + "'",
		"CREATE DATABASE " + database + " OWNER millrace"} {
		if out, err := exec.Command("psql", super, "-v", "ON_ERROR_STOP=1", "-c", statement).CombinedOutput(); err != nil { //nolint:gosec,noctx // no outside input; it takes milliseconds
			return fmt.Errorf("psql: %w: %s", err, out)
		}
	}
	file, err := s.secret("postgres", password)
	conn := s.Postgres.TLS("millrace", database)
	// One database holds both the event store and the lake's catalog.
	s.set("STORE_POSTGRES", conn, "STORE_PASSWORD_FILE", file, "LAKE_CATALOG", conn, "LAKE_PASSWORD_FILE", file)
	return err
}

func (s *Stack) startRedis() error {
	s.Redis.Secure = true
	addr, err := s.Redis.Start()
	if err != nil {
		return err
	}
	file, err := s.secret("redis", redis.Password)
	s.set("REDIS_ADDR", addr, "REDIS_USER", redis.User, "REDIS_PASSWORD_FILE", file, "REDIS_TLS_ENABLED", "true",
		"REDIS_TLS_CA", s.Redis.CA())
	return err
}

// startElasticsearch starts it without TLS and without a password, because the test server has no
// security.
func (s *Stack) startElasticsearch() error {
	at, err := s.Elasticsearch.Start()
	s.set("SEARCH_ELASTICSEARCH", at)
	return err
}

func (s *Stack) startS3() error {
	c, err := s.S3.Start()
	if err != nil {
		return err
	}
	file, err := s.secret("s3", c.SecretKey)
	s.set("LAKE_WAREHOUSE", (&url.URL{Scheme: "s3", Host: c.Bucket, Path: "/warehouse"}).String(),
		"LAKE_S3_ENDPOINT", c.Endpoint,
		"LAKE_S3_REGION", c.Region, "LAKE_S3_ACCESS_KEY", c.AccessKey, "LAKE_S3_SECRET_KEY_FILE", file)
	return err
}

func (s *Stack) startRegistry() error {
	at, err := s.Registry.Start()
	s.set("REGISTRY_URL", at)
	return err
}
