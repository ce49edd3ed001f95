// Package config defines every setting of Millrace. The struct Config contains the key in the
// configuration file, the environment variable and the description of each setting, and Default its
// default.
//
// Load reads the file and the environment. Check finds settings that cannot work. WriteTo writes a
// documented configuration file from the same struct, so file, documentation and code agree;
// docs/configuration.md is generated from it as well. Secret is a setting that is never printed.
//
// Precedence: defaults, the file, the environment, and flags, which the command line applies.
// Unknown keys are errors. A setting with an empty value usually selects an embedded server; its
// description says so.
package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/decode"
	"github.com/millrace/millrace/internal/defaults"
)

// EnvPrefix is the prefix of every environment variable: kafka.brokers is MILLRACE_KAFKA_BROKERS.
const EnvPrefix = "MILLRACE_"

// Config is the whole configuration. The `doc` tag of a field becomes the comment above its key in
// the file.
type Config struct {
	Addr          string        `yaml:"addr" doc:"Address of the listener for commands, queries, SQL and the REST catalog. A non-loopback address requires auth.tokens."`
	TLS           ServerTLS     `yaml:"tls" doc:"Certificate of the listeners addr, admin.addr and tracking.addr. Empty: plain text."`
	Auth          Auth          `yaml:"auth" doc:"Callers and their rights."`
	Hosts         string        `yaml:"hosts" doc:"Allowed Host headers of requests, separated by commas, in addition to localhost, 127.0.0.1 and [::1]. Other names are refused, which stops DNS rebinding from a web page. Empty: on a non-loopback address any name is accepted, because callers there present tokens."`
	Limits        Limits        `yaml:"limits" doc:"Bounds on concurrent work. Excess requests get resource_exhausted (429) with Retry-After: SQL first, then queries, then commands."`
	Admin         Admin         `yaml:"admin" doc:"Listener for health, readiness, metrics, status, verify and profiles."`
	SettingsEvery time.Duration `yaml:"settings_every" doc:"Interval between checks of the settings of Kafka, PostgreSQL, Redis, Elasticsearch and the bucket. The first check is at start."`
	Drain         time.Duration `yaml:"drain" doc:"Time between withdrawing readiness and closing the listeners, so that load balancers notice first."`
	Dependencies  Dependencies  `yaml:"dependencies" doc:"How calls to Redis, Elasticsearch, ClickHouse, S3 and the schema registry are contained."`
	Commands      Commands      `yaml:"commands" doc:"Limits on the content of commands."`
	Customer360   Customer360   `yaml:"customer360" doc:"Customer profiles and segments."`
	Data          string        `yaml:"data" doc:"Folder for the data of the embedded servers. One running system per folder."`
	Durability    string        `yaml:"durability" doc:"What the embedded log and the local warehouse survive. crash: the end of the process, kill -9 included. power-loss: also a power failure; each write is synced, and docs/testing.md states the cost. The event stores survive both with either value. Real servers follow their own settings."`
	Telemetry     Telemetry     `yaml:"telemetry" doc:"What the process reports of its work."`
	Log           Log           `yaml:"log" doc:"Structured logs on standard error."`
	Store         Store         `yaml:"store" doc:"Event stores, one per service."`
	Kafka         Kafka         `yaml:"kafka" doc:"The log."`
	Registry      Registry      `yaml:"registry" doc:"Schema registry with Confluent's API. Required if a topic's codec is not plain."`
	Redis         Redis         `yaml:"redis" doc:"Server of the views orderstatus and customer360, and of features.online.store."`
	Search        Search        `yaml:"search" doc:"Server of the view catalog."`
	Lake          Lake          `yaml:"lake" doc:"Iceberg tables."`
	Features      Features      `yaml:"features" doc:"Features of customers, products and visitors: docs/features.md."`
	ClickHouse    ClickHouse    `yaml:"clickhouse" doc:"Engine for SQL over the lake."`
	Tracking      Tracking      `yaml:"tracking" doc:"Intake of tracking clients, of the role tracking. docs/tracking.md explains it."`
}

// ServerTLS is the certificate of a listener.
type ServerTLS struct {
	Cert string `yaml:"cert" doc:"PEM file with the certificate and its intermediates."`
	Key  string `yaml:"key" doc:"PEM file with the private key."`
}

// ClientTLS configures TLS to a server.
type ClientTLS struct {
	Enabled bool   `yaml:"enabled" doc:"Use TLS."`
	CA      string `yaml:"ca" doc:"PEM file with the trusted CA certificates. Empty: the system's."`
	Cert    string `yaml:"cert" doc:"PEM file with the client certificate, if the server requires one."`
	Key     string `yaml:"key" doc:"PEM file with its private key."`
}

// Auth configures callers and their rights. Tokens and Rights are for listeners, Token and CA for
// the commands that call one.
type Auth struct {
	Tokens string              `yaml:"tokens" doc:"File with one line NAME:TOKEN per caller. Callers send Authorization: Bearer TOKEN. Empty: loopback only, without authentication."`
	Rights map[string][]string `yaml:"rights" doc:"Rights of each caller, as {name: [right, …]}. Rights: commands, queries, sql, catalog.read, catalog.write (also creates tables and commits to them), catalog.admin (also drops, renames and registers tables, and changes namespaces), operations (status, verify), flags.read, flags.write, profiles, all. A suffix limits a right: commands.order and queries.customer to one service, sql.order_lines and catalog.read.order_lines to one table, sql.web.* and catalog.write.web.* to tables with this prefix. A caller with catalog rights to some tables gets no object store keys. A caller without an entry has no rights. Without auth.tokens every caller has all rights."`
	Token  Secret              `yaml:"token" doc:"Token that the commands status, verify, sql and import send."`
	CA     string              `yaml:"ca" doc:"PEM file with the CA certificates that these commands trust. Empty: the system's."`
}

// Granted returns the rights, by caller.
func (a Auth) Granted() (map[string]auth.Rights, error) {
	granted := map[string]auth.Rights{}
	for name, list := range a.Rights {
		rights, err := auth.ParseRights(list)
		if err != nil {
			return nil, fmt.Errorf("auth.rights: %s: %w", name, err)
		}
		granted[name] = rights
	}
	return granted, nil
}

// Admin configures the operators' listener.
type Admin struct {
	Addr string `yaml:"addr" doc:"Address of this listener. A non-loopback address requires auth.tokens. Health, readiness and metrics need no token."`
}

// Commands limits the content of commands.
type Commands struct {
	ClockLeeway time.Duration  `yaml:"clock_leeway" doc:"How far the business time of a command may be ahead of the server's clock. It is stored as sent. A later time is rejected, and the error states the server's time."`
	Currencies  map[string]int `yaml:"currencies" doc:"Currencies that ISO 4217 lacks, or with a different number of decimals, as {code: decimals}. Example: {GBP: 3} accepts prices of a tenth of a penny, which the file of millrace import contains."`
}

// Customer360 configures segments of customers.
type Customer360 struct {
	Segments map[string]Segment `yaml:"segments" doc:"Saved conditions over customer profiles: a map from a name to expression, description and purpose. The expression is CEL; the page on Customer 360 has its variables and functions. The purpose is marketing, analytics or personalisation, and only customers who consent to it are members. Processes with the roles views and query need the same segments."`
	Limits   SegmentLimits      `yaml:"limits" doc:"Bounds of the work that segments cause."`
	Identify Identify           `yaml:"identify" doc:"Links from the identify events of tracking clients, which processes with the role views send as commands."`
}

// Identify configures where links from identify events are sent.
type Identify struct {
	Commands string `yaml:"commands" doc:"URL of a process with the role commands. Not needed by a process that has both roles. Empty otherwise: identify events link nothing."`
	Token    Secret `yaml:"token" doc:"Token for it, with the right commands.identity."`
	CA       string `yaml:"ca" doc:"PEM file with the CA certificates that it must have. Empty: the system's."`
}

// SegmentLimits bounds the work of segments.
type SegmentLimits struct {
	Segments int           `yaml:"segments" doc:"Number of segments."`
	Cost     uint64        `yaml:"cost" doc:"Cost of evaluating one expression for one person, in CEL's units. An expression over a profile costs a few hundred. Above it, the person is not a member."`
	Pending  int           `yaml:"pending" doc:"People who wait to be evaluated. At the limit, reading of the log pauses."`
	Recheck  time.Duration `yaml:"recheck" doc:"How often a person is evaluated again whose segments use a feature that changes all the time, such as the seconds since an order."`
}

// Segment is one segment of customers.
type Segment struct {
	Expression  string `yaml:"expression"`
	Description string `yaml:"description"`
	Purpose     string `yaml:"purpose"`
}

// Limits bounds concurrent work. Zero connections mean a default that depends on the process's
// limit of open files.
type Limits struct {
	Connections         int           `yaml:"connections" doc:"Connections to addr. At the limit, idle connections are closed for new ones. 0: half of the process's open-file limit (ulimit -n), at most 8192."`
	AdminConnections    int           `yaml:"admin_connections" doc:"Connections to admin.addr. 0: an eighth of the open-file limit, at most 256."`
	TrackingConnections int           `yaml:"tracking_connections" doc:"Connections to tracking.addr. 0: a quarter of the open-file limit, at most 8192."`
	PerAddress          int           `yaml:"per_address" doc:"Connections from one address to one listener. 0: three quarters of the listener's limit."`
	IdleTimeout         time.Duration `yaml:"idle_timeout" doc:"Time after which a connection without a request is closed."`
	BodyTimeout         time.Duration `yaml:"body_timeout" doc:"Time in which a request's body must arrive."`
	BodyBytes           int64         `yaml:"body_bytes" doc:"Total size of the bodies of all requests in progress."`
	Calls               int           `yaml:"calls" doc:"Concurrent commands and queries. A quarter is reserved for commands. Further calls queue briefly."`
	SQL                 int           `yaml:"sql" doc:"Concurrent SQL queries. One caller gets at most half of them."`
	SQLWait             time.Duration `yaml:"sql_wait" doc:"Time that a SQL query queues before it is refused."`
}

// Telemetry configures what the process reports of its work.
type Telemetry struct {
	StatsD string `yaml:"statsd" doc:"host:port of a server of StatsD, to which the metrics are sent by UDP every ten seconds, with DogStatsD's tags. docs/metrics.md explains it. Empty: nothing is sent."`
	Traces Traces `yaml:"traces" doc:"Traces of OpenTelemetry. docs/observability.md explains them."`
}

// Traces configures which traces are sent, and where.
type Traces struct {
	Endpoint string        `yaml:"endpoint" doc:"URL of a receiver of OTLP over HTTP: http(s)://host:4318. Empty: nothing is traced."`
	Ratio    float64       `yaml:"ratio" doc:"Share of the traces that begin here and are sent, from 0 to 1. The header traceparent decides for the others. Traces with an error or a slow operation are sent regardless."`
	Slow     time.Duration `yaml:"slow" doc:"Duration from which an operation is slow."`
}

// Log configures logging.
type Log struct {
	Level  slog.Level `yaml:"level" doc:"debug, info, warn or error."`
	Format string     `yaml:"format" doc:"text or json."`
}

// Dependencies configures what happens if a server fails or is slow. Each server is counted on its own.
type Dependencies struct {
	FailureRate int           `yaml:"failure_rate" doc:"Percentage of failed calls, of at least 20 in 10 seconds, from which a server is not called for a moment: calls fail at once. 0: never."`
	OpenFor     time.Duration `yaml:"open_for" doc:"How long it is not called, on average. Then two calls find out whether it has recovered."`
	Concurrency int           `yaml:"concurrency" doc:"Calls to one server at the same time. Others wait for at most 5 seconds."`
}

// Store configures the event stores.
type Store struct {
	Postgres string `yaml:"postgres" doc:"Connection string (postgres://user@host/database?sslmode=verify-full&sslrootcert=FILE). {service} is replaced by the service's name, so that each service can have its own role. Empty: SQLite files in the data folder."`
	Password Secret `yaml:"password" doc:"Password of this user. {service} in a file name is replaced by the service's name."`
}

// Kafka configures the log. Listen is used only if Brokers is empty.
type Kafka struct {
	Brokers    string            `yaml:"brokers" doc:"host:port,host:port. Empty: an embedded broker on loopback, with its data in the data folder."`
	TLS        ClientTLS         `yaml:"tls" doc:"TLS to the brokers."`
	SASL       SASL              `yaml:"sasl" doc:"Authentication to the brokers."`
	Listen     string            `yaml:"listen" doc:"Address of the embedded broker. Port 0 selects a free port."`
	Partitions int               `yaml:"partitions" doc:"Partitions of each topic that Millrace creates."`
	Replicas   int               `yaml:"replicas" doc:"Replicas of each partition of the topics that Millrace creates. 0: the brokers' default."`
	Retention  time.Duration     `yaml:"retention" doc:"How long events stay on the topics that Millrace creates. 0: forever. Otherwise, views are built from the tables of events of the lake and then from the log, so the processes with the role views need to read the lake. Choose more than the longest time for which a sink may be behind, at least a day."`
	Codec      string            `yaml:"codec" doc:"Encoding of events: plain (Protobuf alone), protobuf or avro (both with the registry's framing). Readers accept all three."`
	Codecs     map[string]string `yaml:"codecs" doc:"Codecs of single topics, as {topic: codec}."`
}

// SASL configures authentication at the brokers.
type SASL struct {
	Mechanism string `yaml:"mechanism" doc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Empty: no authentication."`
	User      string `yaml:"user" doc:"User name."`
	Password  Secret `yaml:"password" doc:"Password of this user."`
}

// Registry configures the schema registry.
type Registry struct {
	URL           string    `yaml:"url" doc:"http(s)://host:port of the Confluent API. Empty: no registry."`
	User          string    `yaml:"user" doc:"User for basic authentication."`
	Password      Secret    `yaml:"password" doc:"Password of this user."`
	TLS           ClientTLS `yaml:"tls" doc:"TLS settings for an https URL."`
	Compatibility string    `yaml:"compatibility" doc:"Compatibility level of the subjects, set when a producer starts."`
}

// Redis configures the server of views, processes and shared vectors.
type Redis struct {
	Addr     string    `yaml:"addr" doc:"host:port. Several addresses, separated by commas, are seeds of a cluster. Empty: an embedded server on loopback, with its data in the data folder."`
	User     string    `yaml:"user" doc:"User of Redis' access control list. Empty: the default user."`
	Password Secret    `yaml:"password" doc:"Password of this user."`
	TLS      ClientTLS `yaml:"tls" doc:"TLS to the servers."`
	Listen   string    `yaml:"listen" doc:"Address of the embedded server. Port 0 selects a free port."`
}

// Search configures the search engine of the view catalog.
type Search struct {
	Elasticsearch string    `yaml:"elasticsearch" doc:"http(s)://host:port, several separated by commas. Empty: an embedded index in the data folder."`
	User          string    `yaml:"user" doc:"User for basic authentication."`
	Password      Secret    `yaml:"password" doc:"Password of this user."`
	TLS           ClientTLS `yaml:"tls" doc:"TLS settings for an https URL."`
}

// Lake configures the Iceberg tables and their landing.
type Lake struct {
	Warehouse      string        `yaml:"warehouse" doc:"Location of the tables: s3://bucket/folder. Empty: lake/warehouse in the data folder."`
	S3             S3            `yaml:"s3" doc:"Object store of an s3:// warehouse."`
	Catalog        string        `yaml:"catalog" doc:"Database of Iceberg's SQL catalog: postgres://user@host/database. Empty: a SQLite file in the data folder."`
	Password       Secret        `yaml:"password" doc:"Password of the catalog's user."`
	CommitInterval time.Duration `yaml:"commit_interval" doc:"Longest time that a row waits for its commit while events arrive."`
	CommitBytes    int64         `yaml:"commit_bytes" doc:"Commit earlier if this many bytes of events are pending."`
	REST           REST          `yaml:"rest" doc:"Iceberg's REST catalog, served below /iceberg by the role iceberg."`
	Maintenance    Maintenance   `yaml:"maintenance" doc:"Compaction, snapshot expiry and removal of orphan files."`
}

// REST configures Iceberg's REST catalog. Rights is kept only to refuse it with a reason.
type REST struct {
	Rights        map[string]string `yaml:"rights" doc:"Removed. Use catalog.read, catalog.write or catalog.admin in auth.rights."`
	TokenLifetime time.Duration     `yaml:"token_lifetime" doc:"Lifetime of a token that an engine gets by OAuth2. The client id is the caller's name, the client secret is the caller's token."`
	ReadKeys      Keys              `yaml:"read_keys" doc:"Object store keys that engines get on request (vended credentials). They should be able to read only. Empty: engines bring their own. They must not be those of lake.s3."`
	WriteKeys     Keys              `yaml:"write_keys" doc:"Object store keys for callers with the right catalog.write. Empty: they get read_keys."`
}

// Keys is a pair of keys of an object store.
type Keys struct {
	AccessKey string `yaml:"access_key" doc:"Access key."`
	SecretKey Secret `yaml:"secret_key" doc:"Its secret."`
}

// Maintenance configures compaction, snapshot expiry and removal of orphan files.
type Maintenance struct {
	Every       time.Duration `yaml:"every" doc:"Interval between two runs. 0: never; run millrace lake maintain instead."`
	TargetBytes int64         `yaml:"target_bytes" doc:"Target size of data files."`
	Keep        time.Duration `yaml:"keep" doc:"How long a snapshot stays readable after the next one."`
	OrphanAge   time.Duration `yaml:"orphan_age" doc:"Delete unreferenced files older than this, at least 10m."`
	Memory      int64         `yaml:"memory" doc:"Memory of one compaction in bytes, at least 67108864."`
	Share       float64       `yaml:"share" doc:"Fraction of the time that a compaction works, above 0 and at most 1. It pauses in between to leave resources to landers. millrace lake maintain does not pause."`
}

// S3 configures an object store.
type S3 struct {
	Endpoint  string `yaml:"endpoint" doc:"http(s)://host:port. Empty: Amazon's endpoint of the region."`
	Region    string `yaml:"region" doc:"Region."`
	AccessKey string `yaml:"access_key" doc:"Access key. Empty: the credentials of the environment or of the machine's role."`
	SecretKey Secret `yaml:"secret_key" doc:"Its secret."`
}

// Features selects the feature groups, and configures what the role features keeps in ClickHouse.
type Features struct {
	Groups           string        `yaml:"groups" doc:"Names of the groups to compute and serve, separated by commas. Empty: all that millrace features list prints."`
	Currency         string        `yaml:"currency" doc:"Currency of the features of money: ISO 4217. Orders in other currencies do not count in them. After a change, groups with such features are not fed until millrace rebuild order has dropped their tables, which are filled again."`
	Retention        time.Duration `yaml:"retention" doc:"How long facts and tiles are kept after their time. Longer windows lose their oldest part. 0: without limit."`
	CommitInterval   time.Duration `yaml:"commit_interval" doc:"Maximum time until a fact is in its table. If a topic falls silent, its facts are written earlier."`
	FeastAddr        string        `yaml:"feast_addr" doc:"Address of the HTTP API of Feast's feature server, for Feast clients with a remote online store. A non-loopback address requires auth.tokens. If addr is not its default and this is, a free port is chosen, so that a second system can start; millrace status prints it. Empty: not served."`
	FeastOfflineAddr string        `yaml:"feast_offline_addr" doc:"Address of Feast's remote offline store, for training sets, by Arrow Flight. The rest is as with feast_addr."`
	Online           Online        `yaml:"online" doc:"Vectors that are served."`
}

// The values of Online.Store.
const (
	OnlineInMemory = "memory"
	OnlineInRedis  = "redis"
)

// Online configures the vectors that are served.
type Online struct {
	Store         string        `yaml:"store" doc:"Where the facts are from which vectors are computed. memory: each process has all of them. redis: in the server of the section redis, which the processes fill together and share; max_bytes and snapshot_every do not apply then."`
	MaxEntities   int64         `yaml:"max_entities" doc:"Entities in the store. Beyond, no more events are applied, vectors are refused and the process is not ready."`
	MaxBytes      int64         `yaml:"max_bytes" doc:"Bytes of the facts and texts in memory; beyond, as with max_entities. The process needs about half as much again."`
	SnapshotEvery time.Duration `yaml:"snapshot_every" doc:"Interval between snapshots in the data folder, from which a restart continues. One is also written at the end. 0: only at the end."`
	Retention     time.Duration `yaml:"retention" doc:"How far before the present vectors can be asked for, if a group has sources with finite windows only. Their facts are dropped after the longest window and this time."`
	LogSample     float64       `yaml:"log_sample" doc:"Share of served vectors, from 0 to 1, that are logged on the topic millrace.features.served, which millrace features verify checks. 0: none."`
}

// ClickHouse configures the SQL engine.
type ClickHouse struct {
	URL      string    `yaml:"url" doc:"http(s)://host:port of a server. Empty: an embedded engine on loopback, in a process of its own."`
	User     string    `yaml:"user" doc:"User name. Empty: default."`
	Password Secret    `yaml:"password" doc:"Password of this user."`
	TLS      ClientTLS `yaml:"tls" doc:"TLS settings for an https URL."`
	Cluster  string    `yaml:"cluster" doc:"Name of the server's cluster. Tables are then created on all of its replicas, with replicated engines. Empty: a single server."`
	Writer   string    `yaml:"writer" doc:"User that keeps the tables of the database features, and has no other rights."`
	// Not in an embedded engine, whose users have a password that changes at each start.
	WriterPassword Secret `yaml:"writer_password" doc:"Password of this user. Empty: the same as clickhouse.password."`

	Library string `yaml:"library" doc:"Path of libchdb.so for the embedded engine. Empty: the copy that make installs beside the binary."`
	Listen  string `yaml:"listen" doc:"Address of the embedded engine. Port 0 selects a free port."`
}

// Tracking configures the intake of tracking clients.
type Tracking struct {
	Addr           string            `yaml:"addr" doc:"Address of this listener. Clients authenticate by write key. A non-loopback address requires tracking.keys."`
	Keys           string            `yaml:"keys" doc:"YAML file of the sources: {name: {key: KEY, origins: [https://shop.example], types: [track]}}. Origins and types are optional limits. It is read at start. Empty: one source, demo, with the key demo-write-key, on loopback only."`
	Plan           string            `yaml:"plan" doc:"YAML file of the tracking plan. Events that it does not allow become dead letters. Empty: every event is allowed."`
	Consent        map[string]string `yaml:"consent" doc:"Purposes that need the visitor's consent, as {purpose: drop|reduce}: what happens to an event without it. A purpose is a category of context.consent.categoryPreferences."`
	ConsentDefault string            `yaml:"consent_default" doc:"Whether a purpose that an event does not mention is granted or denied."`
	Requests       int               `yaml:"requests" doc:"Requests in progress. More wait briefly and then get 429 with Retry-After."`
	IDs            int               `yaml:"ids" doc:"Message ids that are remembered, for at most a day, to recognise events that clients send again. At least the number of events of a day. An id takes up to 80 bytes."`
}

// Default returns the default of every setting. Settings of servers are empty, which selects
// embedded ones, so the defaults need no preparation.
func Default() Config {
	return Config{
		Addr:     "127.0.0.1:7400",
		Admin:    Admin{Addr: "127.0.0.1:7401"},
		Auth:     Auth{Rights: map[string][]string{}},
		Commands: Commands{ClockLeeway: time.Minute, Currencies: map[string]int{}},
		Customer360: Customer360{Segments: map[string]Segment{},
			Limits: SegmentLimits{Segments: 100, Cost: 1_000_000, Pending: 100_000, Recheck: 15 * time.Minute}},
		Data:          "data",
		Durability:    "crash",
		Telemetry:     Telemetry{Traces: Traces{Ratio: 0.01, Slow: time.Second}},
		Log:           Log{Level: slog.LevelWarn, Format: "text"},
		SettingsEvery: 5 * time.Minute,
		Limits: Limits{IdleTimeout: 2 * time.Minute, BodyTimeout: 30 * time.Second, BodyBytes: 256 << 20,
			Calls: 256, SQL: 8, SQLWait: 10 * time.Second},
		Dependencies: Dependencies{FailureRate: 50, OpenFor: time.Second, Concurrency: 256},
		Kafka:        Kafka{Listen: "127.0.0.1:0", Partitions: 4, Codec: "plain", Codecs: map[string]string{}},
		Registry:     Registry{Compatibility: "BACKWARD_TRANSITIVE"},
		Redis:        Redis{Listen: "127.0.0.1:0"},
		Lake: Lake{S3: S3{Region: "us-east-1"}, CommitInterval: defaults.CommitInterval,
			CommitBytes: defaults.CommitBytes, REST: REST{Rights: map[string]string{}, TokenLifetime: time.Hour},
			Maintenance: Maintenance{
				Every: defaults.MaintainEvery, TargetBytes: defaults.TargetBytes, Keep: defaults.KeepAge,
				OrphanAge: defaults.OrphanAge, Memory: defaults.Memory, Share: defaults.Share,
			}},
		Features: Features{Currency: "GBP", CommitInterval: 2 * time.Second, FeastAddr: "127.0.0.1:6566",
			FeastOfflineAddr: "127.0.0.1:8815",
			Online:           Online{Store: OnlineInMemory, MaxEntities: 10_000_000, MaxBytes: 8 << 30, SnapshotEvery: 5 * time.Minute, Retention: 24 * time.Hour}},
		ClickHouse: ClickHouse{Listen: "127.0.0.1:0", Writer: "writer"},
		Tracking: Tracking{Addr: "127.0.0.1:7402", Consent: map[string]string{}, ConsentDefault: "granted",
			Requests: 256, IDs: 1_000_000},
	}
}

// Load returns the defaults, overridden by the file at path, overridden by the environment. An
// empty path means `millrace.yaml` in the working directory, which may be missing. Unknown keys are
// errors. It does not check the values; see Check.
func Load(path string, lookupEnv func(string) (string, bool)) (Config, error) {
	// Decoding leaves fields alone whose keys are absent, so they keep their defaults.
	c := Default()
	// Only the default file may be missing.
	optional := path == ""
	if optional {
		path = "millrace.yaml"
	}
	switch b, err := os.ReadFile(path); { //nolint:gosec // the operator names the file
	case errors.Is(err, fs.ErrNotExist) && optional:
	case err != nil:
		return c, fmt.Errorf("configuration: %w", err)
	default:
		if err := decode.YAML(b, &c); err != nil && !errors.Is(err, decode.ErrEmpty) {
			return c, fmt.Errorf("configuration %s: %w (`millrace config` prints every key)", path, err)
		}
	}
	if err := override(reflect.ValueOf(&c).Elem(), EnvPrefix, lookupEnv); err != nil {
		return c, err
	}
	return c, nil
}

// override sets each setting whose environment variable is set. Names are built from the keys on
// the path to the setting, so a new setting has its variable without code here.
func override(v reflect.Value, prefix string, lookupEnv func(string) (string, bool)) error {
	for i := range v.NumField() {
		f, name := v.Field(i), prefix+strings.ToUpper(v.Type().Field(i).Tag.Get("yaml"))
		// A secret has two variables: NAME is its value, NAME_FILE its file. The value takes
		// precedence.
		if secret, ok := f.Addr().Interface().(*Secret); ok {
			if path, ok := lookupEnv(name + "_FILE"); ok {
				*secret = SecretFile(path)
			}
			if text, ok := lookupEnv(name); ok {
				*secret = SecretText(text)
			}
			continue
		}
		// A section: its variables have its name as a prefix.
		if f.Kind() == reflect.Struct {
			if err := override(f, name+"_", lookupEnv); err != nil {
				return err
			}
			continue
		}
		s, ok := lookupEnv(name)
		if !ok {
			continue
		}
		// YAML parses the value, so that a variable means the same as this text in the file.
		if f.Kind() == reflect.String {
			f.SetString(s)
		} else if err := decode.YAML([]byte(s), f.Addr().Interface()); err != nil && !errors.Is(err, decode.ErrEmpty) {
			return fmt.Errorf("environment %s=%q: %w", name, s, err)
		}
	}
	return nil
}

// Codec returns the codec of a topic: its own in kafka.codecs, or else the default of kafka.codec.
func (c Config) Codec(topic string) string {
	if codec, ok := c.Kafka.Codecs[topic]; ok {
		return codec
	}
	return c.Kafka.Codec
}

// Client returns the TLS configuration of a connection to a server, or nil if TLS is not enabled.
// Files are read now, so a renewed certificate needs a restart.
func (t ClientTLS) Client() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	// Without a pool, crypto/tls uses the system's.
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s contains no PEM certificate", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Path returns a path in the data folder.
func (c Config) Path(elem ...string) string {
	return filepath.Join(append([]string{c.Data}, elem...)...)
}

// Logger returns a logger for these settings.
func (l Log) Logger(w io.Writer) *slog.Logger {
	// Check has rejected other formats.
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// WriteTo writes c as a configuration file that documents every key and its environment variable.
// Load can read it again, except for secrets that are not in a file: only a placeholder is written
// for those.
func (c Config) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	comment(&b, "",
		"Every key of Millrace, with its value. Environment variables override the file, and flags override both.")
	b.WriteByte('\n')
	write(&b, reflect.ValueOf(c), "", EnvPrefix)
	n, err := w.Write(b.Bytes())
	return int64(n), err
}

// write writes the fields of a struct, with sections indented.
func write(b *bytes.Buffer, v reflect.Value, indent, env string) {
	for i := range v.NumField() {
		f, t := v.Field(i), v.Type().Field(i)
		key, doc := t.Tag.Get("yaml"), t.Tag.Get("doc")
		name := env + strings.ToUpper(key)
		// A struct is a section, except for a secret.
		if _, leaf := f.Interface().(Secret); f.Kind() == reflect.Struct && !leaf {
			b.WriteByte('\n')
			comment(b, indent, doc)
			fmt.Fprintf(b, "%s%s:\n", indent, key)
			write(b, f, indent+"  ", name+"_")
			continue
		}
		comment(b, indent, doc+" ("+name+")")
		fmt.Fprintf(b, "%s%s: %s\n", indent, key, scalar(f))
	}
}

// commentWidth is the maximum width of a comment line, in characters.
const commentWidth = 100

// comment writes text as comment lines. A word that is longer than a line gets its own line.
func comment(b *bytes.Buffer, indent, text string) {
	// Runes, not bytes: descriptions contain characters such as an ellipsis.
	line := indent + "#"
	for _, word := range strings.Fields(text) {
		if line != indent+"#" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > commentWidth {
			b.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// scalar returns a value in YAML, on one line. Secrets are hidden. A string is always quoted, so
// that it is not read as a number or a boolean.
func scalar(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case string:
		return strconv.Quote(x)
	case slog.Level:
		return strings.ToLower(x.String())
	case Secret:
		if x.file != "" {
			return fmt.Sprintf("{file: %q}", x.file)
		}
		return strconv.Quote(x.String())
	case map[string]string, map[string]int, map[string][]string, map[string]Segment:
		var node yaml.Node
		_ = node.Encode(x) // a map of strings, numbers, lists of strings or segments
		node.Style = yaml.FlowStyle
		b, _ := yaml.Marshal(&node)
		return strings.TrimSpace(string(b))
	default:
		return fmt.Sprint(x)
	}
}
