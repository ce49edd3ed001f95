// Package config holds every setting of Millrace: its default, its place in the configuration file, its environment
// variable and its description, all read from the one struct Config.
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

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/internal/auth"
)

// EnvPrefix starts the name of every environment variable: kafka.brokers is MILLRACE_KAFKA_BROKERS.
const EnvPrefix = "MILLRACE_"

// Config is the whole configuration. A `doc` tag becomes the comment above the key.
type Config struct {
	Addr          string        `yaml:"addr" doc:"Where commands, queries and SQL are served. Beyond loopback it needs auth.tokens."`
	TLS           ServerTLS     `yaml:"tls" doc:"Certificate of the two doors, addr and admin.addr. Empty: plain text."`
	Auth          Auth          `yaml:"auth" doc:"Who may call."`
	Hosts         string        `yaml:"hosts" doc:"Names, separated by commas, by which callers reach the two doors beside localhost, 127.0.0.1 and [::1]. Requests to other names are refused, so that no web page reaches a system by a name of its own. Empty where a door is open beyond loopback: every name, since callers there show tokens."`
	Limits        Limits        `yaml:"limits" doc:"How much is taken at a time. What is more is turned away with resource_exhausted (429) and Retry-After: SQL first, then queries, then commands."`
	Admin         Admin         `yaml:"admin" doc:"Health, readiness, metrics, status, verify and profiles."`
	SettingsEvery time.Duration `yaml:"settings_every" doc:"How often the settings of Kafka, PostgreSQL, Redis, Elasticsearch and the bucket are looked at. At start they are looked at in any case."`
	Drain         time.Duration `yaml:"drain" doc:"How long the doors stay open after readiness is withdrawn, so that load balancers see it first."`
	Commands      Commands      `yaml:"commands" doc:"What commands are taken."`
	Data          string        `yaml:"data" doc:"Folder of everything the embedded parts keep. One running system per folder."`
	Durability    string        `yaml:"durability" doc:"What the embedded log and the lake's folder outlive: crash, the end of the process however violent, or power-loss, a power cut too. The event stores outlive both in any case, so with crash the log and all that is made of it can be made again. power-loss syncs each write: see docs/testing.md for what it costs. Real servers and object stores do as they are set up."`
	Log           Log           `yaml:"log" doc:"Structured logs, on standard error."`
	Store         Store         `yaml:"store" doc:"Event store: one per service."`
	Kafka         Kafka         `yaml:"kafka" doc:"The log."`
	Registry      Registry      `yaml:"registry" doc:"Schema registry, with Confluent's API. Needed where a topic's codec is not plain."`
	Redis         Redis         `yaml:"redis" doc:"Holds the view orderstatus."`
	Search        Search        `yaml:"search" doc:"Holds the view catalog."`
	Lake          Lake          `yaml:"lake" doc:"Iceberg tables."`
	ClickHouse    ClickHouse    `yaml:"clickhouse" doc:"Runs SQL over the lake."`
}

// ServerTLS is the certificate of a door.
type ServerTLS struct {
	Cert string `yaml:"cert" doc:"PEM file of the certificate and those it depends on."`
	Key  string `yaml:"key" doc:"PEM file of its key."`
}

// ClientTLS says how to trust a server.
type ClientTLS struct {
	Enabled bool   `yaml:"enabled" doc:"Speak TLS."`
	CA      string `yaml:"ca" doc:"PEM file of the authorities to trust. Empty: the system's."`
	Cert    string `yaml:"cert" doc:"PEM file of our certificate, where the server asks for one."`
	Key     string `yaml:"key" doc:"PEM file of its key."`
}

// Auth says who may call.
type Auth struct {
	Tokens string              `yaml:"tokens" doc:"File with a line NAME:TOKEN for each caller, who sends Authorization: Bearer TOKEN. Empty: loopback only, and no token is asked for."`
	Rights map[string][]string `yaml:"rights" doc:"What these callers may do, as {name: [right, …]}: commands, queries (or of one service: commands.order, queries.customer; services are order, catalog, customer, inventory), sql (or one table: sql.order_lines; or those that begin so: sql.web.*), catalog.read, catalog.write (make tables and commit to them, too) and catalog.admin (drop, rename and register tables, and namespaces, too), each also of one table or of those that begin so (catalog.read.order_lines, catalog.write.web.*; without keys of the object store, which know no tables), operations (status, verify), profiles, all. Callers that are not named may do nothing. Where no token is asked for, everybody may do everything."`
	Token  Secret              `yaml:"token" doc:"Token that the commands of this program (status, verify, sql, import) send."`
	CA     string              `yaml:"ca" doc:"PEM file of the authorities that these commands trust. Empty: the system's."`
}

// Granted are the rights by caller.
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

// Admin is the operators' door.
type Admin struct {
	Addr string `yaml:"addr" doc:"Where it is served. Beyond loopback it needs auth.tokens; health and readiness are open to everyone."`
}

// Commands says what commands are taken.
type Commands struct {
	ClockLeeway time.Duration  `yaml:"clock_leeway" doc:"How far ahead of this server's clock the business time of a command may lie, for clients whose clocks run ahead. It is stored as it was sent. A later one is refused, and the error states the server's time."`
	Currencies  map[string]int `yaml:"currencies" doc:"Currencies that ISO 4217 does not have, or of which amounts may have other decimals than it says, as {code: decimals}: {GBP: 3} takes prices of a tenth of a penny, as the file of millrace import has."`
}

// Limits say how much is taken at a time.
type Limits struct {
	Connections      int           `yaml:"connections" doc:"Connections to addr; where there are as many, idle ones are closed for new ones. 0: half of the files that the process may have open (ulimit -n), at most 8192."`
	AdminConnections int           `yaml:"admin_connections" doc:"The same of admin.addr, which so has room whatever addr has to do. 0: an eighth of the files, at most 256."`
	PerAddress       int           `yaml:"per_address" doc:"Connections from one address to one door. 0: three quarters of the door's."`
	IdleTimeout      time.Duration `yaml:"idle_timeout" doc:"How long a connection stays open without a request."`
	BodyTimeout      time.Duration `yaml:"body_timeout" doc:"In which a request's body must have come."`
	BodyBytes        int64         `yaml:"body_bytes" doc:"Bytes of the bodies of all requests under way."`
	Calls            int           `yaml:"calls" doc:"Commands and queries worked on at a time; others wait a moment. Queries leave a quarter to commands."`
	SQL              int           `yaml:"sql" doc:"SQL queries that run at a time. One caller has at most half of them."`
	SQLWait          time.Duration `yaml:"sql_wait" doc:"How long a SQL query waits for its turn."`
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level `yaml:"level" doc:"debug, info, warn or error."`
	Format string     `yaml:"format" doc:"text or json."`
}

// Store selects the event store.
type Store struct {
	Postgres string `yaml:"postgres" doc:"Connection string (postgres://user@host/database?sslmode=verify-full&sslrootcert=FILE); {service} in it becomes the service's name, so that each may have its own role. Empty: SQLite files in the data folder."`
	Password Secret `yaml:"password" doc:"Of the user in it; {service} in the file's name becomes the service's name."`
}

// Kafka selects and shapes the log.
type Kafka struct {
	Brokers    string            `yaml:"brokers" doc:"host:port,host:port. Empty: an embedded broker on loopback, on disk in the data folder."`
	TLS        ClientTLS         `yaml:"tls" doc:"To the brokers."`
	SASL       SASL              `yaml:"sasl" doc:"How to log in."`
	Listen     string            `yaml:"listen" doc:"Where the embedded broker listens; port 0 takes a free one."`
	Partitions int               `yaml:"partitions" doc:"Partitions of each topic, when Millrace creates it."`
	Replicas   int               `yaml:"replicas" doc:"Copies of each partition, when Millrace creates it. 0: what the brokers do by default."`
	Codec      string            `yaml:"codec" doc:"How events are written: plain (Protobuf alone), protobuf or avro (with the registry's framing). Readers know all three."`
	Codecs     map[string]string `yaml:"codecs" doc:"Codecs of single topics, as {topic: codec}."`
}

// SASL is a login at Kafka.
type SASL struct {
	Mechanism string `yaml:"mechanism" doc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Empty: no login."`
	User      string `yaml:"user" doc:"Who logs in."`
	Password  Secret `yaml:"password" doc:"The user's password."`
}

// Registry is the schema registry.
type Registry struct {
	URL           string    `yaml:"url" doc:"http(s)://host:port of its Confluent API. Empty: none."`
	User          string    `yaml:"user" doc:"Basic authentication."`
	Password      Secret    `yaml:"password" doc:"The user's password."`
	TLS           ClientTLS `yaml:"tls" doc:"Authorities and certificates, where the URL says https."`
	Compatibility string    `yaml:"compatibility" doc:"What is asked of a new version of a subject's schema, set when a producer starts."`
}

// Redis selects the server of the hot views.
type Redis struct {
	Addr     string    `yaml:"addr" doc:"host:port; several, separated by commas, are seeds of a cluster. Empty: an embedded server on loopback, rebuilt from the log at start."`
	User     string    `yaml:"user" doc:"User of Redis' access control list. Empty: the default user."`
	Password Secret    `yaml:"password" doc:"The user's password."`
	TLS      ClientTLS `yaml:"tls" doc:"To the servers."`
	Listen   string    `yaml:"listen" doc:"Where the embedded server listens; port 0 takes a free one."`
}

// Search selects the search engine.
type Search struct {
	Elasticsearch string    `yaml:"elasticsearch" doc:"http(s)://host:port, several separated by commas. Empty: an embedded index in the data folder."`
	User          string    `yaml:"user" doc:"Basic authentication."`
	Password      Secret    `yaml:"password" doc:"The user's password."`
	TLS           ClientTLS `yaml:"tls" doc:"Authorities and certificates, where the URL says https."`
}

// Lake says where the tables are and shapes the landing.
type Lake struct {
	Warehouse      string        `yaml:"warehouse" doc:"Where the tables are: s3://bucket/folder. Empty: lake/warehouse in the data folder."`
	S3             S3            `yaml:"s3" doc:"How to reach an s3:// warehouse."`
	Catalog        string        `yaml:"catalog" doc:"Iceberg's SQL catalog: postgres://user@host/database. Empty: a SQLite file in the data folder."`
	Password       Secret        `yaml:"password" doc:"Of the catalog's user."`
	CommitInterval time.Duration `yaml:"commit_interval" doc:"Longest time that a landed row waits for its commit while events keep coming."`
	CommitBytes    int64         `yaml:"commit_bytes" doc:"Commit earlier once this many bytes of events wait."`
	REST           REST          `yaml:"rest" doc:"Iceberg's REST catalog, which the role iceberg serves below /iceberg: what engines may do there, and are given."`
	Maintenance    Maintenance   `yaml:"maintenance" doc:"Keeps the tables small: few large sorted files, a short history."`
}

// REST says what callers of the REST catalog may do, and what they are given.
type REST struct {
	Rights        map[string]string `yaml:"rights" doc:"Moved: name catalog.read, catalog.write or catalog.admin in auth.rights."`
	TokenLifetime time.Duration     `yaml:"token_lifetime" doc:"How long a token is good that an engine gets by OAuth2, with a caller's name as its client id and the caller's token as its secret."`
	ReadKeys      Keys              `yaml:"read_keys" doc:"Keys of the object store that engines are handed if they ask (vended credentials): make them for this, with the right to read. Empty: engines bring their own. Never those of lake.s3."`
	WriteKeys     Keys              `yaml:"write_keys" doc:"The same for callers who may write. Empty: they are handed read_keys."`
}

// Keys are a pair of an object store's.
type Keys struct {
	AccessKey string `yaml:"access_key" doc:"The key."`
	SecretKey Secret `yaml:"secret_key" doc:"Its secret."`
}

// Maintenance says how the tables are kept small.
type Maintenance struct {
	Every       time.Duration `yaml:"every" doc:"Time between two runs. 0: none; then run millrace lake maintain."`
	TargetBytes int64         `yaml:"target_bytes" doc:"Size that data files are to have."`
	Keep        time.Duration `yaml:"keep" doc:"How long a state of a table stays readable after another took its place."`
	OrphanAge   time.Duration `yaml:"orphan_age" doc:"Age of a file that nothing refers to from which on it is removed; at least 10m."`
	Memory      int64         `yaml:"memory" doc:"Bytes that a compaction may hold; at least 67108864."`
	Share       float64       `yaml:"share" doc:"For which share of the time a compaction works, above 0 and at most 1; it rests in between, so that landers beside it stay fast. millrace lake maintain does not rest."`
}

// S3 is an object store.
type S3 struct {
	Endpoint  string `yaml:"endpoint" doc:"http(s)://host:port. Empty: Amazon's of the region."`
	Region    string `yaml:"region" doc:"Its region."`
	AccessKey string `yaml:"access_key" doc:"Who reads and writes. Empty: what the environment or the machine's role gives."`
	SecretKey Secret `yaml:"secret_key" doc:"The key's secret."`
}

// ClickHouse selects the SQL engine.
type ClickHouse struct {
	URL      string    `yaml:"url" doc:"http(s)://host:port of a server. Empty: an embedded engine, a process of its own on loopback."`
	User     string    `yaml:"user" doc:"Who asks. Empty: default."`
	Password Secret    `yaml:"password" doc:"The user's password."`
	TLS      ClientTLS `yaml:"tls" doc:"Authorities and certificates, where the URL says https."`
	Library  string    `yaml:"library" doc:"Path of libchdb.so for the embedded engine. Empty: where make installs it, beside the binary."`
	Listen   string    `yaml:"listen" doc:"Where the embedded engine listens; port 0 takes a free one."`
}

// Default is what holds where nothing is said.
func Default() Config {
	return Config{
		Addr:          "127.0.0.1:7400",
		Admin:         Admin{Addr: "127.0.0.1:7401"},
		Auth:          Auth{Rights: map[string][]string{}},
		Commands:      Commands{ClockLeeway: time.Minute, Currencies: map[string]int{}},
		Data:          "data",
		Durability:    "crash",
		Log:           Log{Level: slog.LevelWarn, Format: "text"},
		SettingsEvery: 5 * time.Minute,
		Limits:        Limits{IdleTimeout: 2 * time.Minute, BodyTimeout: 30 * time.Second, BodyBytes: 256 << 20, Calls: 256, SQL: 8, SQLWait: 10 * time.Second},
		Kafka:         Kafka{Listen: "127.0.0.1:0", Partitions: 4, Codec: "plain", Codecs: map[string]string{}},
		Registry:      Registry{Compatibility: "BACKWARD_TRANSITIVE"},
		Redis:         Redis{Listen: "127.0.0.1:0"},
		Lake: Lake{S3: S3{Region: "us-east-1"}, CommitInterval: time.Second, CommitBytes: 64 << 20, REST: REST{Rights: map[string]string{}, TokenLifetime: time.Hour}, Maintenance: Maintenance{
			Every: 10 * time.Minute, TargetBytes: 128 << 20, Keep: time.Hour, OrphanAge: 24 * time.Hour, Memory: 256 << 20, Share: 0.5,
		}},
		ClickHouse: ClickHouse{Listen: "127.0.0.1:0"},
	}
}

// Load reads the file at path over the defaults, then the environment over both. An empty path means `millrace.yaml` in
// the working directory, which may be absent. Unknown keys are errors.
func Load(path string, lookupEnv func(string) (string, bool)) (Config, error) {
	c := Default()
	optional := path == ""
	if optional {
		path = "millrace.yaml"
	}
	switch b, err := os.ReadFile(path); { //nolint:gosec // the operator names the file
	case errors.Is(err, fs.ErrNotExist) && optional:
	case err != nil:
		return c, fmt.Errorf("configuration: %w", err)
	default:
		d := yaml.NewDecoder(bytes.NewReader(b))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
			return c, fmt.Errorf("configuration %s: %w (`millrace config` prints every key)", path, err)
		}
	}
	if err := override(reflect.ValueOf(&c).Elem(), EnvPrefix, lookupEnv); err != nil {
		return c, err
	}
	return c, nil
}

// override sets every leaf whose variable is set.
func override(v reflect.Value, prefix string, lookupEnv func(string) (string, bool)) error {
	for i := range v.NumField() {
		f, name := v.Field(i), prefix+strings.ToUpper(v.Type().Field(i).Tag.Get("yaml"))
		if secret, ok := f.Addr().Interface().(*Secret); ok {
			if path, ok := lookupEnv(name + "_FILE"); ok {
				*secret = SecretFile(path)
			}
			if text, ok := lookupEnv(name); ok {
				*secret = SecretText(text)
			}
			continue
		}
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
		// YAML's own rules read the text, so that a variable means what the same text means in the file.
		if f.Kind() == reflect.String {
			f.SetString(s)
		} else if err := yaml.Unmarshal([]byte(s), f.Addr().Interface()); err != nil {
			return fmt.Errorf("environment %s=%q: %w", name, s, err)
		}
	}
	return nil
}

// Codec is how events are written to a topic.
func (c Config) Codec(topic string) string {
	if codec, ok := c.Kafka.Codecs[topic]; ok {
		return codec
	}
	return c.Kafka.Codec
}

// Client is the TLS of a connection to a server; nil where TLS is not enabled.
func (t ClientTLS) Client() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities: %s holds no certificate in PEM", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("our certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Path is a path inside the data folder.
func (c Config) Path(elem ...string) string {
	return filepath.Join(append([]string{c.Data}, elem...)...)
}

// Logger makes the logger that Log describes.
func (l Log) Logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// WriteTo writes c as a configuration file that documents every key and its environment variable.
func (c Config) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	b.WriteString("# Every key of Millrace, with its value. A variable of the environment goes over the file,\n" +
		"# and a flag of the command line over both.\n\n")
	write(&b, reflect.ValueOf(c), "", EnvPrefix)
	n, err := w.Write(b.Bytes())
	return int64(n), err
}

func write(b *bytes.Buffer, v reflect.Value, indent, env string) {
	for i := range v.NumField() {
		f, t := v.Field(i), v.Type().Field(i)
		key := t.Tag.Get("yaml")
		name := env + strings.ToUpper(key)
		if _, leaf := f.Interface().(Secret); f.Kind() == reflect.Struct && !leaf {
			fmt.Fprintf(b, "\n%s# %s\n%s%s:\n", indent, t.Tag.Get("doc"), indent, key)
			write(b, f, indent+"  ", name+"_")
			continue
		}
		fmt.Fprintf(b, "%s# %s (%s)\n%s%s: %s\n", indent, t.Tag.Get("doc"), name, indent, key, scalar(f))
	}
}

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
	case map[string]string, map[string]int, map[string][]string:
		var node yaml.Node
		_ = node.Encode(x) // a map of texts, numbers or lists of texts
		node.Style = yaml.FlowStyle
		b, _ := yaml.Marshal(&node)
		return strings.TrimSpace(string(b))
	default:
		return fmt.Sprint(x)
	}
}
