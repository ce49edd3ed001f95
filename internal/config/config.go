// Package config holds every setting of Millrace: its default, its place in the configuration file, its environment
// variable and its description, all read from the one struct Config.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// EnvPrefix starts the name of every environment variable: kafka.brokers is MILLRACE_KAFKA_BROKERS.
const EnvPrefix = "MILLRACE_"

// Config is the whole configuration. A `doc` tag becomes the comment above the key.
type Config struct {
	Addr       string     `yaml:"addr" doc:"Where commands, queries, SQL, health and admin are served. Nothing is authenticated yet: keep it on loopback."`
	Data       string     `yaml:"data" doc:"Folder of everything the embedded parts keep. One running system per folder."`
	Log        Log        `yaml:"log" doc:"Structured logs, on standard error."`
	Store      Store      `yaml:"store" doc:"Event store: one per service."`
	Kafka      Kafka      `yaml:"kafka" doc:"The log."`
	Redis      Redis      `yaml:"redis" doc:"Holds the view orderstatus."`
	Lake       Lake       `yaml:"lake" doc:"Iceberg tables."`
	ClickHouse ClickHouse `yaml:"clickhouse" doc:"Runs SQL over the lake."`
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level `yaml:"level" doc:"debug, info, warn or error."`
	Format string     `yaml:"format" doc:"text or json."`
}

// Store selects the event store.
type Store struct {
	Postgres string `yaml:"postgres" doc:"Connection string (postgres://user:password@host/database). Empty: SQLite files in the data folder."`
}

// Kafka selects and shapes the log.
type Kafka struct {
	Brokers    string `yaml:"brokers" doc:"host:port,host:port. Empty: an embedded broker on loopback, on disk in the data folder."`
	Listen     string `yaml:"listen" doc:"Where the embedded broker listens; port 0 takes a free one."`
	Partitions int    `yaml:"partitions" doc:"Partitions of each topic, when Millrace creates it."`
}

// Redis selects the server of the hot views.
type Redis struct {
	Addr   string `yaml:"addr" doc:"host:port. Empty: an embedded server on loopback, rebuilt from the log at start."`
	Listen string `yaml:"listen" doc:"Where the embedded server listens; port 0 takes a free one."`
}

// Lake shapes the landing.
type Lake struct {
	CommitInterval time.Duration `yaml:"commit_interval" doc:"Longest time that a landed row waits for its commit while events keep coming."`
	CommitBytes    int64         `yaml:"commit_bytes" doc:"Commit earlier once this many bytes of events wait."`
}

// ClickHouse selects the SQL engine.
type ClickHouse struct {
	Library string `yaml:"library" doc:"Path of libchdb.so for the embedded engine. Empty: where make installs it, beside the binary."`
	Listen  string `yaml:"listen" doc:"Where the embedded engine listens; port 0 takes a free one."`
}

// Default is what holds where nothing is said.
func Default() Config {
	return Config{
		Addr:       "127.0.0.1:7400",
		Data:       "data",
		Log:        Log{Level: slog.LevelWarn, Format: "text"},
		Kafka:      Kafka{Listen: "127.0.0.1:0", Partitions: 4},
		Redis:      Redis{Listen: "127.0.0.1:0"},
		Lake:       Lake{CommitInterval: time.Second, CommitBytes: 64 << 20},
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

// The embedded broker shows aborted records in an answer that is cut by its whole size, which readers ask to be 50 MiB at
// the most, with 1 MiB of each partition.
const embeddedPartitions = 32

// Check finds what cannot work, before anything is started.
func (c Config) Check() error {
	var errs []error
	for _, a := range []struct{ key, addr string }{
		{"addr", c.Addr}, {"kafka.listen", c.Kafka.Listen}, {"redis.listen", c.Redis.Listen}, {"clickhouse.listen", c.ClickHouse.Listen},
	} {
		host, _, err := net.SplitHostPort(a.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.key, err))
			continue
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			errs = append(errs, fmt.Errorf("%s: %q is not a loopback address; nothing here is authenticated yet, so listen on 127.0.0.1", a.key, a.addr))
		}
	}
	if c.Data == "" {
		errs = append(errs, errors.New("data: name a folder"))
	}
	if c.Kafka.Partitions < 1 || c.Kafka.Partitions > 1000 {
		errs = append(errs, fmt.Errorf("kafka.partitions: %d is not between 1 and 1000", c.Kafka.Partitions))
	}
	if c.Kafka.Brokers == "" && c.Kafka.Partitions > embeddedPartitions {
		errs = append(errs, fmt.Errorf("kafka.partitions: the embedded broker serves at most %d, not %d", embeddedPartitions, c.Kafka.Partitions))
	}
	if c.Lake.CommitInterval <= 0 {
		errs = append(errs, fmt.Errorf("lake.commit_interval: %v is not above 0", c.Lake.CommitInterval))
	}
	if c.Lake.CommitBytes <= 0 {
		errs = append(errs, fmt.Errorf("lake.commit_bytes: %d is not above 0", c.Lake.CommitBytes))
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
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
		if f.Kind() == reflect.Struct {
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
	default:
		return fmt.Sprint(x)
	}
}
