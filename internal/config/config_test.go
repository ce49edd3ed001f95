package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/config"
)

func none(string) (string, bool) { return "", false }

func TestDefaultIsValid(t *testing.T) {
	t.Parallel()
	if err := config.Default().Check(); err != nil {
		t.Fatal(err)
	}
}

// A file that WriteTo wrote yields the same configuration.
func TestWrittenFileReadsBack(t *testing.T) {
	t.Parallel()
	want := config.Default()
	want.Addr, want.Log.Level, want.Log.Format = "127.0.0.1:1", slog.LevelInfo, "json"
	want.Auth.Rights = map[string][]string{"anna": {"all"}, "shop: online": {"commands.order", "sql.ns x.my table"}}
	want.Commands.Currencies = map[string]int{"GBP": 3, "PTS": 0}
	want.Customer360.Segments = map[string]config.Segment{"lapsed": {
		Expression: "spent(\"GBP\") > 5.0 && // {a: b}, and c\n  orders_within('30d') == 0 # not a comment" + strings.Repeat(" || true", 30),
		Purpose:    "marketing",
	}, "all": {Expression: "true", Description: "it's: everybody", Purpose: "analytics"}}
	want.Lake.CommitInterval, want.Kafka.Partitions = 1500*time.Millisecond, 7
	var b bytes.Buffer
	if _, err := want.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path, none)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, b.String())
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// The environment overrides the file, and the file the defaults. Errors name the wrong key or
// variable.
func TestLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, file string
		env        map[string]string
		check      func(config.Config) bool
		wantErr    string
	}{
		{name: "the file goes over the default", file: "kafka: {partitions: 9}", check: func(c config.Config) bool { return c.Kafka.Partitions == 9 && c.Addr == config.Default().Addr }},
		{name: "the environment goes over the file", file: "kafka: {partitions: 9}", env: map[string]string{"MILLRACE_KAFKA_PARTITIONS": "3"}, check: func(c config.Config) bool { return c.Kafka.Partitions == 3 }},
		{name: "durations and levels are read", env: map[string]string{"MILLRACE_LAKE_COMMIT_INTERVAL": "250ms", "MILLRACE_LOG_LEVEL": "debug"}, check: func(c config.Config) bool {
			return c.Lake.CommitInterval == 250*time.Millisecond && c.Log.Level == slog.LevelDebug
		}},
		{name: "text that looks like a number stays text", env: map[string]string{"MILLRACE_KAFKA_BROKERS": "1234"}, check: func(c config.Config) bool { return c.Kafka.Brokers == "1234" }},
		{name: "an empty file is the default", file: "\n", check: func(c config.Config) bool { return reflect.DeepEqual(c, config.Default()) }},
		{name: "a printed secret is not a secret", file: `auth: {token: "(hidden)"}`, wantErr: "placeholder"},
		{name: "a duration may be in days", file: "features: {retention: 30d}", env: map[string]string{"MILLRACE_CUSTOMER360_LIMITS_RECHECK": "1d"}, check: func(c config.Config) bool {
			return c.Features.Retention == 30*24*time.Hour && c.Customer360.Limits.Recheck == 24*time.Hour
		}},
		{name: "an empty variable is ignored", env: map[string]string{"MILLRACE_KAFKA_PARTITIONS": ""}, check: func(c config.Config) bool { return c.Kafka.Partitions == config.Default().Kafka.Partitions }},
		{name: "an unknown key is named", file: "kafka: {broker: x}", wantErr: "line 1: kafka.broker: unknown key: want some of brokers, "},
		{name: "a wrong number is named", file: "kafka:\n  partitions: many", wantErr: "line 2: kafka.partitions: want a whole number"},
		{name: "a wrong duration is named", file: "features: {retention: 1 year}", wantErr: "line 1: features.retention: want a duration such as 90s, 15m, 12h or 30d"},
		{name: "a wrong level is named", file: "log: {level: loud}", wantErr: "line 1: log.level: want debug, info, warn or error"},
		{name: "a wrong secret is named", file: "auth: {token: [a]}", wantErr: "line 1: auth.token: want a string or {file: PATH}"},
		{name: "a wrong duration in a variable is explained", env: map[string]string{"MILLRACE_LAKE_COMMIT_INTERVAL": "1"}, wantErr: `MILLRACE_LAKE_COMMIT_INTERVAL="1": want a duration such as`},
		{name: "a bad variable is named", env: map[string]string{"MILLRACE_KAFKA_PARTITIONS": "many"}, wantErr: "MILLRACE_KAFKA_PARTITIONS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := config.Load(path, func(k string) (string, bool) { v, ok := c.env[k]; return v, ok })
			switch {
			case c.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v does not name %s", err, c.wantErr)
				}
			case err != nil:
				t.Fatal(err)
			case !c.check(got):
				t.Fatalf("got %+v", got)
			}
		})
	}
}

// Only the default file may be missing.
func TestNamedFileMustExist(t *testing.T) {
	t.Parallel()
	if _, err := config.Load(filepath.Join(t.TempDir(), "absent.yaml"), none); err == nil {
		t.Fatal("want an error")
	}
}

// Each invalid setting is found, and the error names its key.
func TestCheckNamesTheKey(t *testing.T) {
	t.Parallel()
	for key, change := range map[string]func(*config.Config){
		"addr":                 func(c *config.Config) { c.Addr = "0.0.0.0:7400" },
		"kafka.listen":         func(c *config.Config) { c.Kafka.Listen = "nonsense" },
		"kafka.partitions":     func(c *config.Config) { c.Kafka.Partitions = 0 },
		"lake.commit_interval": func(c *config.Config) { c.Lake.CommitInterval = 0 },
		"log.format":           func(c *config.Config) { c.Log.Format = "xml" },
		"data":                 func(c *config.Config) { c.Data = "" },
		"admin.addr":           func(c *config.Config) { c.Admin.Addr = "0.0.0.0:7401" },
		"auth.tokens":          func(c *config.Config) { c.Addr = "0.0.0.0:7400" },
		"drain":                func(c *config.Config) { c.Drain = -1 },
		"tls.key":              func(c *config.Config) { c.TLS.Cert = "cert.pem" },
		"kafka.tls.key":        func(c *config.Config) { c.Kafka.TLS.Cert = "cert.pem" },
		"kafka.sasl.mechanism": func(c *config.Config) { c.Kafka.SASL.Mechanism = "GSSAPI" },
		"kafka.sasl":           func(c *config.Config) { c.Kafka.SASL.Mechanism = "PLAIN" },
		"kafka.replicas":       func(c *config.Config) { c.Kafka.Replicas = -1 },
		"kafka.codec":          func(c *config.Config) { c.Kafka.Codec = "json" },
		"kafka.codecs":         func(c *config.Config) { c.Kafka.Codecs["t"] = "json" },
		"registry.url":         func(c *config.Config) { c.Kafka.Codecs["t"] = "avro" },
		"store.password":       func(c *config.Config) { c.Store.Postgres = "postgres://u:p@h/d" },
		"lake.password":        func(c *config.Config) { c.Lake.Catalog = "host=h password=p" },
		"search.password":      func(c *config.Config) { c.Search.Elasticsearch = "http://h:1,http://u:p@h:2" },
		"lake.warehouse":       func(c *config.Config) { c.Lake.Warehouse = "gs://bucket" },
		"lake.s3.secret_key":   func(c *config.Config) { c.Lake.S3.AccessKey = "a" },

		"tracking.addr":            func(c *config.Config) { c.Tracking.Addr = "0.0.0.0:7402" },
		"tracking.consent: ads":    func(c *config.Config) { c.Tracking.Consent["ads"] = "ask" },
		"tracking.consent_default": func(c *config.Config) { c.Tracking.ConsentDefault = "" },
		"tracking.requests":        func(c *config.Config) { c.Tracking.Requests = 0 },
		"tracking.ids":             func(c *config.Config) { c.Tracking.IDs = 0 },

		"commands.clock_leeway":       func(c *config.Config) { c.Commands.ClockLeeway = 2 * time.Hour },
		"commands.currencies":         func(c *config.Config) { c.Commands.Currencies["gbp"] = 3 },
		"features.online":             func(c *config.Config) { c.Features.Online.MaxBytes = 0 },
		"features.online.store":       func(c *config.Config) { c.Features.Online.Store = "disk" },
		"features.feast_addr":         func(c *config.Config) { c.Features.FeastAddr = "0.0.0.0:6566" },
		"features.feast_offline_addr": func(c *config.Config) { c.Features.FeastOfflineAddr = "0.0.0.0:8815" },
		"features.currency":           func(c *config.Config) { c.Features.Currency = "PTS" },

		"lake.rest.rights":         func(c *config.Config) { c.Lake.REST.Rights["anna"] = "read" },
		"auth.rights: anna":        func(c *config.Config) { c.Auth.Tokens, c.Auth.Rights["anna"] = "tokens", []string{"everything"} },
		"auth.rights: no effect":   func(c *config.Config) { c.Auth.Rights["anna"] = []string{"all"} },
		"lake.rest.token_lifetime": func(c *config.Config) { c.Lake.REST.TokenLifetime = time.Second },
		"lake.rest.read_keys":      func(c *config.Config) { c.Lake.REST.ReadKeys.AccessKey = "a" },
		"lake.rest.write_keys": func(c *config.Config) { // the landers' own
			c.Lake.S3.AccessKey, c.Lake.S3.SecretKey = "a", config.SecretText("b")
			c.Lake.REST.WriteKeys = config.Keys{AccessKey: "a", SecretKey: config.SecretText("b")}
		},
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			c := config.Default()
			change(&c)
			if err := c.Check(); err == nil || !strings.Contains(err.Error(), key) {
				t.Fatalf("error %v does not name %s", err, key)
			}
		})
	}
}

// A password is found in every form in which PostgreSQL accepts one.
func TestPasswordsInAddresses(t *testing.T) {
	t.Parallel()
	for address, has := range map[string]bool{
		"host=h password=p": true, "host=h password = p": true, "host=h password\t='p q'": true, "PASSWORD=p host=h": true, "host=h sslpassword = p": true,
		"postgres://u:p@h/d": true, "postgres://u@h/d?password=p": true, "postgres://u@h/d?pass%77ord=p": true, "postgres://u@h/d?sslpassword=p": true,
		"host=h user=u": false, "postgres://u@h/d?sslmode=verify-full": false, "host=password.example user=u": false,
	} {
		c := config.Default()
		c.Store.Postgres = address
		err := c.Check()
		if refused := err != nil && strings.Contains(err.Error(), "store.password"); refused != has {
			t.Errorf("%q: %v", address, err)
		}
		if err != nil && has && strings.Contains(err.Error(), address) {
			t.Errorf("%q: the error repeats it", address)
		}
	}
}

// TestSecretsAreNotPrinted prints a secret in every possible way.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-that-nobody-sees"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	yaml := filepath.Join(t.TempDir(), "c.yaml")
	for name, c := range map[string]struct {
		yaml string
		env  map[string]string
	}{
		"text in the file":      {yaml: "redis: {password: " + secret + "}"},
		"file in the file":      {yaml: "redis: {password: {file: " + file + "}}"},
		"text in the variable":  {env: map[string]string{"MILLRACE_REDIS_PASSWORD": secret}},
		"file in the variable":  {env: map[string]string{"MILLRACE_REDIS_PASSWORD_FILE": file}},
		"the text goes first":   {yaml: "redis: {password: other}", env: map[string]string{"MILLRACE_REDIS_PASSWORD": secret, "MILLRACE_REDIS_PASSWORD_FILE": "absent"}},
		"the file goes over it": {yaml: "redis: {password: other}", env: map[string]string{"MILLRACE_REDIS_PASSWORD_FILE": file}},
	} {
		if err := os.WriteFile(yaml, []byte(c.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(yaml, func(k string) (string, bool) { v, ok := c.env[k]; return v, ok })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if text, err := got.Redis.Password.Reveal(""); err != nil || text != secret {
			t.Errorf("%s: revealed %q, %v", name, text, err)
		}
		var shown bytes.Buffer
		if _, err := got.WriteTo(&shown); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&shown, "%v %+v %#v", got, got, got)
		if err := json.NewEncoder(&shown).Encode(got.Redis); err != nil {
			t.Fatal(err)
		}
		slog.New(slog.NewJSONHandler(&shown, nil)).Info("configured", "password", got.Redis.Password,
			"redis", got.Redis)
		if strings.Contains(shown.String(), secret) {
			t.Errorf("%s: it is printed:\n%s", name, shown.String())
		}
	}
}

func TestUnreadableSecret(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "order")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/absent/order", empty} {
		_, err := config.SecretFile(strings.Replace(path, "order", "{service}", 1)).Reveal("order")
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("the error %v does not name %s", err, path)
		}
	}
}

func TestClientTLSErrors(t *testing.T) {
	t.Parallel()
	none, err := config.ClientTLS{CA: "/absent"}.Client()
	if none != nil || err != nil {
		t.Errorf("where it is not enabled: %v, %v", none, err)
	}
	for _, c := range []config.ClientTLS{{Enabled: true, CA: "/absent"}, {Enabled: true, CA: "config_test.go"},
		{Enabled: true, Cert: "/absent", Key: "/absent"}} {
		if _, err := c.Client(); err == nil {
			t.Errorf("%+v: want an error", c)
		}
	}
}
