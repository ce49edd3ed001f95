package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/event"
)

// leastRetention is the least time for which events stay on Kafka: sinks may be stopped over night.
const leastRetention = 24 * time.Hour

// embeddedPartitions is the maximum number of partitions of a topic on the embedded broker. That
// broker shows aborted records if a response is truncated by its total size. Readers request at
// most 50 MiB in total and 1 MiB per partition.
const embeddedPartitions = 32

// Check returns an error for settings that cannot work, before anything starts.
//
// It looks at the values only: it reads no file and connects to no server. Each error names its
// key.
func (c Config) Check() error {
	return errors.Join(c.checkListeners(), c.CheckClient())
}

// checkListeners checks the addresses that this process listens on: without authentication, only
// loopback is allowed. Embedded servers have no authentication at all, so theirs are always on
// loopback.
func (c Config) checkListeners() error {
	// All errors are collected, so that one run reports every mistake.
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, a := range []struct {
		key, addr string
		guarded   bool // by tokens, if they are configured
	}{
		{"addr", c.Addr, true}, {"admin.addr", c.Admin.Addr, true},
		{"features.feast_addr", cmp.Or(c.Features.FeastAddr, "127.0.0.1:0"), true},
		{"features.feast_offline_addr", cmp.Or(c.Features.FeastOfflineAddr, "127.0.0.1:0"), true},
		{"kafka.listen", c.Kafka.Listen, false}, {"redis.listen", c.Redis.Listen, false},
		{"clickhouse.listen", c.ClickHouse.Listen, false},
	} {
		host, _, err := net.SplitHostPort(a.addr)
		ip := net.ParseIP(host)
		switch {
		case err != nil:
			bad("%s: %w", a.key, err)
		case host == "localhost" || ip != nil && ip.IsLoopback():
		case !a.guarded:
			bad("%s: %q is not a loopback address, and embedded servers do not authenticate: listen on 127.0.0.1",
				a.key, a.addr)
		case c.Auth.Tokens == "":
			bad("%s: %q is not a loopback address: set auth.tokens, or listen on 127.0.0.1", a.key, a.addr)
		}
	}
	c.Tracking.checkAddr(bad)
	return errors.Join(errs...)
}

// checkAddr checks the address of the tracking intake: only loopback may use the key that everybody
// knows.
func (t Tracking) checkAddr(bad func(format string, args ...any)) {
	host, _, err := net.SplitHostPort(t.Addr)
	ip := net.ParseIP(host)
	switch {
	case err != nil:
		bad("tracking.addr: %w", err)
	case host != "localhost" && (ip == nil || !ip.IsLoopback()) && t.Keys == "":
		bad("tracking.addr: %q is not a loopback address: set tracking.keys, or listen on 127.0.0.1", t.Addr)
	}
}

// check checks the other settings of the tracking intake.
func (t Tracking) check(bad func(format string, args ...any)) {
	for _, purpose := range slices.Sorted(maps.Keys(t.Consent)) {
		if action := t.Consent[purpose]; action != "drop" && action != "reduce" {
			bad("tracking.consent: %s: %q is neither drop nor reduce", purpose, action)
		}
	}
	if t.ConsentDefault != "granted" && t.ConsentDefault != "denied" {
		bad("tracking.consent_default: %q is neither granted nor denied", t.ConsentDefault)
	}
	if t.Requests <= 0 {
		bad("tracking.requests: %d is not above 0", t.Requests)
	}
	if t.IDs <= 0 {
		bad("tracking.ids: %d is not above 0", t.IDs)
	}
}

// CheckClient checks the configuration of a program that calls a running system. Its addresses may
// be on any host.
func (c Config) CheckClient() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	// A certificate is useless without its key.
	for _, pair := range []struct{ cert, key, first, second string }{
		{c.TLS.Cert, c.TLS.Key, "tls.cert", "tls.key"},
		{c.Kafka.TLS.Cert, c.Kafka.TLS.Key, "kafka.tls.cert", "kafka.tls.key"},
		{c.Registry.TLS.Cert, c.Registry.TLS.Key, "registry.tls.cert", "registry.tls.key"},
		{c.Redis.TLS.Cert, c.Redis.TLS.Key, "redis.tls.cert", "redis.tls.key"},
		{c.Search.TLS.Cert, c.Search.TLS.Key, "search.tls.cert", "search.tls.key"},
		{c.ClickHouse.TLS.Cert, c.ClickHouse.TLS.Key, "clickhouse.tls.cert", "clickhouse.tls.key"},
	} {
		if (pair.cert == "") != (pair.key == "") {
			bad("%s, %s: set both or neither", pair.first, pair.second)
		}
	}
	if c.Data == "" {
		bad("data: empty: set it to a folder")
	}
	if c.Durability != "crash" && c.Durability != "power-loss" {
		bad("durability: %q is neither crash nor power-loss", c.Durability)
	}
	if c.SettingsEvery <= 0 {
		bad("settings_every: %v is not above 0", c.SettingsEvery)
	}
	if l := c.Commands.ClockLeeway; l < 0 || l > time.Hour {
		bad("commands.clock_leeway: %v is not between 0 and 1h: correct the clocks instead", l)
	}
	if err := event.Currencies(c.Commands.Currencies).Check(); err != nil {
		bad("commands.currencies: %w", err)
	}
	if o := c.Features.Online; o.MaxEntities < 1 || o.MaxBytes < 1 || o.SnapshotEvery < 0 || o.Retention < 0 {
		bad("features.online: max_entities and max_bytes must be positive, snapshot_every and retention not negative")
	}
	if s := c.Features.Online.Store; s != OnlineInMemory && s != OnlineInRedis {
		bad("features.online.store: %q is not memory or redis", s)
	}
	if s := c.Features.Online.LogSample; !(s >= 0 && s <= 1) {
		bad("features.online.log_sample: %v is not from 0 to 1", s)
	}
	if _, known := event.Currencies(c.Commands.Currencies).Decimals(c.Features.Currency); !known {
		bad("features.currency: %q is not a currency of ISO 4217 or of commands.currencies", c.Features.Currency)
	}
	if l := c.Customer360.Limits; l.Segments < 1 || l.Cost < 1 || l.Pending < 1 || l.Recheck < time.Second {
		bad("customer360.limits: segments, cost and pending must be positive, and recheck at least 1s")
	}
	c.Limits.check(bad)
	if host, port, err := net.SplitHostPort(c.Telemetry.StatsD); c.Telemetry.StatsD != "" &&
		(err != nil || host == "" || port == "") {
		bad("telemetry.statsd: %q is not host:port", c.Telemetry.StatsD)
	}
	c.Telemetry.Traces.check(bad)
	if c.Drain < 0 {
		bad("drain: %v is below 0", c.Drain)
	}
	if _, err := c.Auth.Granted(); err != nil {
		bad("%w", err)
	}
	if len(c.Auth.Rights) > 0 && c.Auth.Tokens == "" {
		bad("auth.rights: no effect without tokens: set auth.tokens")
	}
	// Each section with rules of its own has a method.
	c.Dependencies.check(bad)
	c.Kafka.check(bad)
	if c.Features.Retention < 0 {
		bad("features.retention: %v is below 0", c.Features.Retention)
	}
	if c.Features.CommitInterval <= 0 {
		bad("features.commit_interval: %v is not above 0", c.Features.CommitInterval)
	}
	// Other codecs than plain store schema ids, which only a registry can resolve.
	for _, codec := range append(slices.Collect(maps.Values(c.Kafka.Codecs)), c.Kafka.Codec) {
		if codec != "plain" && c.Registry.URL == "" {
			bad("registry.url: the codec %s needs a registry", codec)
			break
		}
	}
	for _, a := range []struct{ key, value, secret string }{
		{"store.postgres", c.Store.Postgres, "store.password"}, {"lake.catalog", c.Lake.Catalog, "lake.password"},
		{"registry.url", c.Registry.URL, "registry.password"}, {"redis.addr", c.Redis.Addr, "redis.password"},
		{"search.elasticsearch", c.Search.Elasticsearch, "search.password"},
		{"clickhouse.url", c.ClickHouse.URL, "clickhouse.password"},
		{"lake.s3.endpoint", c.Lake.S3.Endpoint, "lake.s3.secret_key"},
	} {
		// These values appear in logs and in `millrace config`. Secrets do not.
		if hasPassword(a.value) {
			bad("%s: contains a password, and this setting is printed: use %s for the password", a.key, a.secret)
		}
	}
	if w := c.Lake.Warehouse; w != "" && !strings.HasPrefix(w, "s3://") {
		bad("lake.warehouse: %q is not s3://bucket/folder", w)
	}
	// Without keys, the client takes those of the environment or of the machine's role.
	if (c.Lake.S3.AccessKey == "") != c.Lake.S3.SecretKey.Empty() {
		bad("lake.s3.access_key, lake.s3.secret_key: set both or neither")
	}
	c.Lake.checkREST(bad)
	c.Tracking.check(bad)
	if c.Lake.CommitInterval <= 0 {
		bad("lake.commit_interval: %v is not above 0", c.Lake.CommitInterval)
	}
	if c.Lake.CommitBytes <= 0 {
		bad("lake.commit_bytes: %d is not above 0", c.Lake.CommitBytes)
	}
	if m := c.Lake.Maintenance; m.Every < 0 || m.TargetBytes <= 0 || m.Keep <= 0 || m.OrphanAge < 10*time.Minute ||
		m.Memory < 64<<20 || !(m.Share > 0 && m.Share <= 1) {
		bad("lake.maintenance: want every ≥ 0, target_bytes > 0, keep > 0, orphan_age ≥ 10m, memory ≥ 67108864, 0 < share ≤ 1; got %+v", m)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format: %q is neither text nor json", c.Log.Format)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// checkREST checks the settings of the REST catalog. Engines must not get the keys of this process:
// with those they could delete files without the catalog's knowledge.
func (l Lake) checkREST(bad func(string, ...any)) {
	// The key remains in the struct, so that files with it get this error and not "unknown key".
	if len(l.REST.Rights) > 0 {
		bad("lake.rest.rights: removed: grant catalog.read, catalog.write or catalog.admin in auth.rights (callers without an entry have no rights)")
	}
	if l.REST.TokenLifetime < time.Minute {
		bad("lake.rest.token_lifetime: %v is below 1m", l.REST.TokenLifetime)
	}
	for _, pair := range []struct {
		key string
		Keys
	}{{"read_keys", l.REST.ReadKeys}, {"write_keys", l.REST.WriteKeys}} {
		if (pair.AccessKey == "") != pair.SecretKey.Empty() {
			bad("lake.rest.%s: set access_key and secret_key, or neither", pair.key)
		}
		if pair.AccessKey != "" && pair.AccessKey == l.S3.AccessKey {
			bad("lake.rest.%s: same keys as lake.s3, which engines must not get: create separate keys for engines", pair.key)
		}
	}
}

// hasPassword reports whether a URL, a list of URLs or a PostgreSQL keyword string contains a
// password.
func hasPassword(s string) bool {
	for one := range strings.SplitSeq(s, ",") {
		u, err := url.Parse(one)
		if err != nil {
			continue // not a URL; passwordWord matches keyword strings
		}
		if _, has := u.User.Password(); has || u.Query().Has("password") || u.Query().Has("sslpassword") {
			return true
		}
	}
	return passwordWord.MatchString(s)
}

// passwordWord matches PostgreSQL's keywords password and sslpassword. Spaces may precede the
// equals sign.
var passwordWord = regexp.MustCompile(`(?i)password\s*=`)

// check reports invalid settings to bad.
func (d Dependencies) check(bad func(string, ...any)) {
	if d.FailureRate < 0 || d.FailureRate > 100 {
		bad("dependencies.failure_rate: %d is not between 0 and 100", d.FailureRate)
	}
	if d.OpenFor < 10*time.Millisecond || d.OpenFor > time.Minute {
		bad("dependencies.open_for: %v is not between 10ms and 1m", d.OpenFor)
	}
	if d.Concurrency < 1 || d.Concurrency > 100_000 {
		bad("dependencies.concurrency: %d is not between 1 and 100000", d.Concurrency)
	}
}

// check reports invalid settings of the log to bad.
func (k Kafka) check(bad func(string, ...any)) {
	if k.Partitions < 1 || k.Partitions > 1000 {
		bad("kafka.partitions: %d is not between 1 and 1000", k.Partitions)
	}
	if k.Retention != 0 && k.Retention < leastRetention {
		bad("kafka.retention: %v is less than %v, and sinks that are behind would lose events", k.Retention, leastRetention)
	}
	if k.Brokers == "" && k.Partitions > embeddedPartitions {
		bad("kafka.partitions: the embedded broker has at most %d, not %d", embeddedPartitions, k.Partitions)
	}
	if k.Replicas < 0 {
		bad("kafka.replicas: %d is below 0", k.Replicas)
	}
	// OAUTHBEARER and GSSAPI are not supported.
	switch k.SASL.Mechanism {
	case "":
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if k.SASL.User == "" || k.SASL.Password.Empty() {
			bad("kafka.sasl: %s needs user and password", k.SASL.Mechanism)
		}
	default:
		bad("kafka.sasl.mechanism: %q is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", k.SASL.Mechanism)
	}
	if !slices.Contains(codecs, k.Codec) {
		bad("kafka.codec: %q is not one of %s", k.Codec, strings.Join(codecs, ", "))
	}
	for topic, codec := range k.Codecs {
		if !slices.Contains(codecs, codec) {
			bad("kafka.codecs: %q of %s is not one of %s", codec, topic, strings.Join(codecs, ", "))
		}
	}
}

// codecs are the valid codecs of a topic. They have the same names as in package registry.
var codecs = []string{"plain", "protobuf", "avro"}

// check reports limits that are below their minimum to bad.
func (l Limits) check(bad func(format string, args ...any)) {
	for _, v := range []struct {
		key         string
		value, from int64
	}{
		{"connections", int64(l.Connections), 0}, {"admin_connections", int64(l.AdminConnections), 0},
		{"per_address", int64(l.PerAddress), 0}, {"tracking_connections", int64(l.TrackingConnections), 0},
		{"idle_timeout", int64(l.IdleTimeout), 1}, {"body_timeout", int64(l.BodyTimeout), 1},
		{"body_bytes", l.BodyBytes, 8 << 20},
		{"calls", int64(l.Calls), 4}, {"sql", int64(l.SQL), 1}, {"sql_wait", int64(l.SQLWait), 0},
	} {
		// Zero means a default where it is allowed; see the descriptions.
		if v.value < v.from {
			bad("limits.%s: %d is below %d", v.key, v.value, v.from)
		}
	}
}

// check reports invalid settings of traces to bad.
func (t Traces) check(bad func(format string, args ...any)) {
	if u, err := url.Parse(t.Endpoint); t.Endpoint != "" &&
		(err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		bad("telemetry.traces.endpoint: %q is not http(s)://host:port", t.Endpoint)
	}
	if !(t.Ratio >= 0 && t.Ratio <= 1) {
		bad("telemetry.traces.ratio: %v is not from 0 to 1", t.Ratio)
	}
	if t.Slow <= 0 {
		bad("telemetry.traces.slow: %v is not above 0", t.Slow)
	}
}
