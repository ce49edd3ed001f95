package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/faults"
	lakelanding "github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/lake/maintenance"
	lakesql "github.com/millrace/millrace/lake/sql"
	"github.com/millrace/millrace/streams"
)

// EngineCommand is the hidden subcommand of this binary that runs the SQL engine.
const EngineCommand = "clickhouse-engine"

func (p *App) startStores(ctx context.Context) error {
	for _, a := range p.modules.aggregates() {
		store, err := p.openStore(ctx, a)
		if err != nil {
			return fmt.Errorf("store of %s: %w", a.Service, err)
		}
		p.stores[a.Name] = store
		p.onStop(store.Close)
	}
	return nil
}

// storesByService returns the stores of this process, if its roles have any.
func (p *App) storesByService() map[string]eventstore.Store {
	stores := map[string]eventstore.Store{}
	for _, a := range p.modules.aggregates() {
		if s := p.stores[a.Name]; s != nil {
			stores[a.Service] = s
		}
	}
	return stores
}

func (p *App) openStore(ctx context.Context, a event.Aggregate) (eventstore.Store, error) {
	if p.cfg.Store.Postgres == "" {
		if err := os.MkdirAll(p.cfg.Path("store"), 0o750); err != nil {
			return nil, err
		}
		return sqlite.Open(ctx, p.cfg.Path("store", a.Service+".db"), a)
	}
	conn, password, err := storeAccess(p.cfg.Store, a)
	if err != nil {
		return nil, err
	}
	return postgres.Open(ctx, conn, a, postgres.WithPassword(password), postgres.WithLogger(p.log))
}

// storeAccess is how the store of an aggregate's service is reached.
func storeAccess(c config.Store, a event.Aggregate) (conn, password string, err error) {
	if password, err = c.Password.Reveal(a.Service); err != nil {
		return "", "", fmt.Errorf("store.password: %w", err)
	}
	return strings.ReplaceAll(c.Postgres, "{service}", a.Service), password, nil
}

// Migrate brings the schemas of all event stores to this version, as whom the configuration names, and tells of each.
func Migrate(ctx context.Context, c config.Config, tell func(service string)) error {
	if c.Store.Postgres == "" {
		return errors.New("store.postgres names no server: the embedded stores migrate themselves")
	}
	for _, a := range Shop().aggregates() {
		conn, password, err := storeAccess(c.Store, a)
		if err != nil {
			return err
		}
		if err := postgres.Migrate(ctx, conn, a, postgres.WithPassword(password)); err != nil {
			return err
		}
		tell(a.Service)
	}
	return nil
}

// startKafka connects to the log, and starts one where none is named.
func (p *App) startKafka(ctx context.Context) error {
	brokers := p.cfg.Kafka.Brokers
	if brokers == "" {
		broker, err := embeddedkafka.Start(ctx, embeddedkafka.Config{
			DataDir: p.cfg.Path("kafka"), Addr: p.cfg.Kafka.Listen, SyncWrites: p.cfg.Durability == "power-loss", Logger: p.log,
		})
		if err != nil {
			return taken(err, p.cfg.Kafka.Listen, "the setting kafka.listen")
		}
		p.onStop(broker.Close)
		brokers, p.boot = broker.Addr(), "-"+broker.Boot()
	}
	p.addresses["kafka"] = brokers
	access, err := kafkaAccess(p.cfg.Kafka)
	if err != nil {
		return err
	}
	p.kafka = kafka.Config{Brokers: brokers, ClientID: "millrace", Security: access, Replicas: p.cfg.Kafka.Replicas, Logger: p.log}
	admin, err := kafka.NewAdmin(p.kafka)
	if err != nil {
		return err
	}
	p.admin = admin
	p.onStop(func() error {
		admin.Close()
		return nil
	})
	if err := p.startRegistry(); err != nil {
		return err
	}
	if err := p.startSeals(); err != nil {
		return err
	}
	if p.wanted[stores] && !p.has(Relay) {
		if p.published, err = relay.NewFollower(p.kafka, p.storesByService()); err != nil {
			return err
		}
		p.onStop(func() error {
			p.published.Close()
			return nil
		})
	}
	if !p.has(Relay) && !p.has(Views) && !p.has(Lake) {
		return admin.Reach(ctx) // who only looks needs no right to create
	}
	return admin.EnsureTopics(ctx, relay.Topics(p.modules.aggregates(), int32(p.cfg.Kafka.Partitions))...)
}

// startRegistry makes the client of the schema registry, where one is named. Nothing is asked yet.
func (p *App) startRegistry() error {
	c := p.cfg.Registry
	if c.URL == "" {
		return nil
	}
	password, err := c.Password.Reveal("")
	if err != nil {
		return fmt.Errorf("registry.password: %w", err)
	}
	trust, err := c.TLS.Client()
	if err != nil {
		return fmt.Errorf("registry.tls: %w", err)
	}
	p.registry, err = registry.NewClient(registry.Config{URL: c.URL, User: c.User, Password: password, TLS: trust, Logger: p.log})
	if err != nil {
		return err
	}
	p.onStop(func() error {
		p.registry.Close()
		return nil
	})
	p.decoder = registry.NewDecoder(p.registry)
	p.metrics.Gauge("millrace_registry_degraded", "1 while the schema registry is unavailable and cached schemas are used.", func() float64 {
		if p.registry.Degraded() {
			return 1
		}
		return 0
	})
	p.background("schema registry", p.registry.Watch)
	return nil
}

// startSeals has the readers of this process tell the relays' records from others.
func (p *App) startSeals() error {
	seals, err := relay.NewSeals(p.kafka, p.modules.aggregates(), p.storesByService())
	if err != nil {
		return err
	}
	p.seals = seals
	p.onStop(func() error {
		seals.Close()
		return nil
	})
	if p.decoder == nil {
		p.decoder = registry.NewDecoder(nil)
	}
	p.decoder.CheckSeals(seals)
	return nil
}

// encoder is what a topic's producer writes with; nil for plain values.
func (p *App) encoder(a event.Aggregate) (*registry.Encoder, error) {
	codec, err := registry.ParseCodec(p.cfg.Codec(a.Topic))
	if err != nil || codec == registry.Plain {
		return nil, err
	}
	message, err := registry.Message(a)
	if err != nil {
		return nil, err
	}
	return registry.NewEncoder(registry.EncoderConfig{
		Client: p.registry, Topic: a.Topic, Message: message, Codec: codec, Compatibility: p.cfg.Registry.Compatibility,
	})
}

func kafkaAccess(c config.Kafka) (security.Config, error) {
	password, err := c.SASL.Password.Reveal("")
	if err != nil {
		return security.Config{}, fmt.Errorf("kafka.sasl.password: %w", err)
	}
	return security.Config{
		TLS: c.TLS.Enabled, CAFile: c.TLS.CA, CertFile: c.TLS.Cert, KeyFile: c.TLS.Key,
		Mechanism: c.SASL.Mechanism, Username: c.SASL.User, Password: password,
	}, nil
}

// LakeConfig says where the lake is: on the servers that the configuration names, else in the data folder.
func LakeConfig(c config.Config, log *slog.Logger) (lake.Config, error) {
	out := lake.Config{
		Warehouse: cmp.Or(c.Lake.Warehouse, c.Path("lake", "warehouse")), Catalog: cmp.Or(c.Lake.Catalog, c.Path("lake", "catalog.db")),
		Sync:   c.Durability == "power-loss",
		S3:     lake.S3{Endpoint: c.Lake.S3.Endpoint, Region: c.Lake.S3.Region, AccessKey: c.Lake.S3.AccessKey},
		Tables: Shop().tables(),
		Logger: log,
	}
	var err error
	if out.S3.SecretKey, err = c.Lake.S3.SecretKey.Reveal(""); err != nil {
		return out, fmt.Errorf("lake.s3.secret_key: %w", err)
	}
	if out.CatalogPassword, err = c.Lake.Password.Reveal(""); err != nil {
		return out, fmt.Errorf("lake.password: %w", err)
	}
	return out, nil
}

func (p *App) startLake(ctx context.Context) error {
	c, err := LakeConfig(p.cfg, p.log)
	if err != nil {
		return err
	}
	c.Tables = p.modules.tables()
	c.ReadOnly = !p.wanted[landing] && !p.has(Iceberg)
	l, err := openLake(ctx, c)
	if err != nil {
		return err
	}
	p.lake = l
	p.onStop(l.Close)
	return nil
}

// openLake waits for a lake that another process is about to make.
func openLake(ctx context.Context, c lake.Config) (*lake.Lake, error) {
	const patience, step = time.Minute, 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for told := false; ; told = true {
		l, err := lake.Open(ctx, c)
		if err == nil || !c.ReadOnly || !errors.Is(err, lake.ErrNoLake) {
			return l, err
		}
		if !told {
			c.Logger.Warn("waiting for the lake, which a process with the role lake makes", "error", err)
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (p *App) startLanding(context.Context) error {
	parking := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		parking.Close()
		return nil
	})
	instance := ""
	if p.cfg.Kafka.Brokers == "" {
		instance = "embedded" // there is one process at an embedded broker
	}
	run := lakelanding.Config{
		Instance: instance,
		Brokers:  strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder, Park: park(parking),
		CommitInterval: p.cfg.Lake.CommitInterval, CommitBytes: p.cfg.Lake.CommitBytes, Maintenance: p.upkeep(),
	}
	p.metrics.Labelled("millrace_table_stopped", "1 for each table that this process cannot land.", []string{"table"}, func(is func(labels ...string)) {
		for _, fault := range p.lake.Stopped() {
			is(fault.Table)
		}
	})
	p.background("lake", func(ctx context.Context) error { return p.land(ctx, run) })
	return nil
}

// How often the tables are looked at where none can be landed.
const landAgain = 30 * time.Second

// land lands the tables until ctx is done. Where none of them can be landed, the process serves on: status, readiness
// and a metric say so.
func (p *App) land(ctx context.Context, run lakelanding.Config) error {
	for {
		err := lakelanding.Run(ctx, p.lake, run)
		if broken := (*faults.TableError)(nil); !errors.As(err, &broken) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(landAgain):
		}
	}
}

// upkeep is how the process that lands keeps the tables small; nil where it does not.
func (p *App) upkeep() *maintenance.Config {
	m := p.cfg.Lake.Maintenance
	if m.Every == 0 {
		return nil
	}
	return &maintenance.Config{
		Every: m.Every, TargetBytes: m.TargetBytes, KeepAge: m.Keep, OrphanAge: m.OrphanAge, Memory: m.Memory, Share: m.Share, Logger: p.log.With("part", "maintenance"),
	}
}

func park(to *streams.DeadLetters) lakelanding.Parker {
	return func(ctx context.Context, records []lakelanding.Parked) error {
		parked := make([]streams.DeadLetter, 0, len(records))
		for _, r := range records {
			parked = append(parked, streams.DeadLetter{
				Sink: r.Sink, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
				Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: r.Reason,
			})
		}
		return to.Write(ctx, parked...)
	}
}

// startEngine connects to the ClickHouse that the configuration names, and starts one where none is named.
func (p *App) startEngine(ctx context.Context) error {
	c := p.cfg.ClickHouse
	var client *clickhouse.Client
	if c.URL == "" {
		scratch := "" // a temporary one
		if p.wanted[folder] {
			scratch = p.cfg.Path("engine")
			// Nothing in it outlives the process that wrote it, and what a crash left incomplete can stop the engine
			// from starting.
			if err := os.RemoveAll(scratch); err != nil {
				return fmt.Errorf("remove the SQL engine's scratch files: %w", err)
			}
		}
		e, err := StartEngine(ctx, p.cfg, scratch, p.log)
		if err != nil {
			return err
		}
		p.onStop(e.Close)
		client, p.addresses["clickhouse"] = e.Client(), e.Addr()
	} else {
		password, err := c.Password.Reveal("")
		if err != nil {
			return fmt.Errorf("clickhouse.password: %w", err)
		}
		trust, err := c.TLS.Client()
		if err != nil {
			return fmt.Errorf("clickhouse.tls: %w", err)
		}
		client, err = clickhouse.NewServerClient(clickhouse.Server{URL: c.URL, User: c.User, Password: password, TLS: trust})
		if err != nil {
			return err
		}
		p.onStop(client.Close)
		p.addresses["clickhouse"] = c.URL
	}
	store, err := sqlStore(p.cfg)
	if err != nil {
		return err
	}
	p.sql = lakesql.New(SQLTables(p.lake), client, store)
	return nil
}

// sqlStore is how the engine reaches the lake's object store.
func sqlStore(c config.Config) (lakesql.S3, error) {
	l, err := LakeConfig(c, nil)
	return lakesql.S3{Endpoint: l.S3.Endpoint, Region: l.S3.Region, AccessKey: l.S3.AccessKey, SecretKey: l.S3.SecretKey}, err
}

// SQL runs queries on an engine that StartEngine started.
func SQL(c config.Config, l *lake.Lake, engine *clickhouse.Engine) (*lakesql.SQL, error) {
	store, err := sqlStore(c)
	return lakesql.New(SQLTables(l), engine.Client(), store), err
}

// StartEngine starts the SQL engine as a process of this binary. An empty folder means a temporary one.
func StartEngine(ctx context.Context, c config.Config, folder string, log *slog.Logger) (*clickhouse.Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return clickhouse.StartEngine(ctx, clickhouse.Config{
		Command: []string{self, EngineCommand}, Library: c.ClickHouse.Library, Listen: c.ClickHouse.Listen,
		DataDir: folder, Logger: log,
	})
}

// SQLTables tells SQL which tables there are at the moment of a query.
func SQLTables(l *lake.Lake) lakesql.Tables {
	return func(ctx context.Context, wanted func(string) bool) ([]lakesql.Table, error) {
		states, broken, err := l.Look(ctx)
		if err != nil {
			return nil, err
		}
		for _, fault := range broken {
			readable := slices.ContainsFunc(states, func(s lake.TableState) bool { return s.Name == fault.Table })
			if !readable && wanted(fault.Table) {
				return nil, fault // a query of other tables is not concerned
			}
		}
		others, err := l.Others(ctx, wanted)
		return lakesql.TablesOf(append(states, others...)), err
	}
}

func (p *App) startRelays(context.Context) error {
	parking := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		parking.Close()
		return nil
	})
	p.metrics.Gauge("millrace_relay_strays", "Records on the topics of events that no relay wrote, since the start.", func() (n float64) {
		for _, r := range p.relays {
			n += float64(r.Progress().Strays)
		}
		return n
	})
	for _, a := range p.modules.aggregates() {
		encoder, err := p.encoder(a)
		if err != nil {
			return err
		}
		r, err := relay.New(relay.Config{
			Store: p.stores[a.Name], Aggregate: a, Kafka: p.kafka, Encoder: encoder, Logger: p.log,
			PutAside: func(ctx context.Context, m kafka.Message, reason error) error {
				return parking.Write(ctx, streams.DeadLetter{
					Sink: "relay/" + a.Service, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset,
					Key: m.Key, Value: m.Value, Headers: m.Headers, Reason: reason,
				})
			},
			TransactionalID: "millrace-relay-" + a.Service + p.boot,
		})
		if err != nil {
			return err
		}
		p.relays[a.Name] = r
		p.background("relay of "+a.Service, func(ctx context.Context) error { return p.runRelay(ctx, r) })
	}
	return nil
}

// runRelay runs a relay for good. With the embedded broker nobody else can hold its transactional id, for the data
// folder is ours; then "fenced" only means that this machine slept through a transaction.
func (p *App) runRelay(ctx context.Context, r *relay.Relay) error {
	for {
		err := r.Run(ctx)
		if p.boot == "" || !errors.Is(err, relay.ErrFenced) {
			return err
		}
		p.log.Warn("a relay starts over", "reason", err)
	}
}
