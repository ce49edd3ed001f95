package app

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
)

// startKafka connects to the configured brokers, or starts an embedded broker if none are
// configured. It then opens what every part needs of Kafka: admin client, registry, seals and
// topics.
func (p *App) startKafka(ctx context.Context) error {
	brokers := p.cfg.Kafka.Brokers
	if brokers == "" {
		broker, err := embeddedkafka.Start(ctx, embeddedkafka.Config{
			DataDir: p.cfg.Path("kafka"), Addr: p.cfg.Kafka.Listen, SyncWrites: p.cfg.Durability == "power-loss",
			Logger: p.log,
		})
		if err != nil {
			return addressInUse(err, p.cfg.Kafka.Listen, "kafka.listen")
		}
		p.onStop(broker.Close)
		// Transactional ids must be new in each run of the embedded broker; see Broker.Boot.
		brokers, p.boot = broker.Addr(), "-"+broker.Boot()
	}
	p.addresses["kafka"] = brokers
	access, err := kafkaAccess(p.cfg.Kafka)
	if err != nil {
		return err
	}
	p.kafka = kafka.Config{Brokers: brokers, ClientID: "millrace", Security: access, Replicas: p.cfg.Kafka.Replicas,
		Logger: p.log}
	// One admin client for topics, offsets and settings.
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
	// The position of relays in other processes is known from their checkpoints only. Embedded stores
	// have no others.
	if p.wanted[stores] && (!p.has(Relay) || p.cfg.Store.Postgres != "") {
		if p.published, err = relay.NewFollower(p.kafka, p.storesByService()); err != nil {
			return err
		}
		p.onStop(func() error {
			p.published.Close()
			return nil
		})
	}
	if !p.has(Relay) && !p.has(Views) && !p.has(Lake) && !p.has(Features) && p.has(Tracking) {
		return admin.EnsureTopics(ctx, p.modules.sourceTopics(p.cfg.Kafka)...)
	}
	if !p.has(Relay) && !p.has(Views) && !p.has(Lake) && !p.has(Features) {
		// Roles that only read need no right to create topics.
		return admin.Ping(ctx)
	}
	// The other roles create missing topics, so a fresh cluster needs no preparation.
	return admin.EnsureTopics(ctx, p.modules.logs(p.cfg.Kafka)...)
}

// startRegistry creates the client of the configured schema registry, if any. It makes no request
// yet.
func (p *App) startRegistry() error {
	c := p.cfg.Registry
	if c.URL == "" {
		return nil
	}
	// Secrets are read at start only. A changed password needs a restart.
	password, err := c.Password.Reveal("")
	if err != nil {
		return fmt.Errorf("registry.password: %w", err)
	}
	trust, err := c.TLS.Client()
	if err != nil {
		return fmt.Errorf("registry.tls: %w", err)
	}
	p.registry, err = registry.NewClient(registry.Config{URL: c.URL, User: c.User, Password: password, TLS: trust,
		Logger: p.log, Dependency: p.dependencies.Named("registry")})
	if err != nil {
		return err
	}
	p.onStop(func() error {
		p.registry.Close()
		return nil
	})
	// This decoder reads values with the registry's framing, too.
	p.decoder = registry.NewDecoder(p.registry)
	p.metrics.Gauge("millrace_registry_degraded",
		"1 while the schema registry is unavailable and cached schemas are used.", func() float64 {
			if p.registry.Degraded() {
				return 1
			}
			return 0
		})
	p.background("schema registry", p.registry.Watch)
	return nil
}

// startSeals gives this process's decoder the seals by which it distinguishes the relays' records
// from others.
func (p *App) startSeals() error {
	// With a store, announcements of seals are checked by its secret; see relay.Seals.
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
	// From here on, the decoder rejects records without a valid seal.
	p.decoder.CheckSeals(seals)
	return nil
}

// encoder returns the encoder of a topic's values, or nil for plain values. Only the role relay
// encodes. Readers recognise the codec of each value, so a codec can change while a topic is in
// use.
func (p *App) encoder(a event.Aggregate) (*registry.Encoder, error) {
	// A topic without a codec of its own has the default of kafka.codec.
	codec, err := registry.ParseCodec(p.cfg.Codec(a.Topic))
	if err != nil || codec == registry.Plain {
		return nil, err
	}
	// The message whose schema is registered for the topic.
	message, err := registry.Message(a)
	if err != nil {
		return nil, err
	}
	return registry.NewEncoder(registry.EncoderConfig{
		Client: p.registry, Topic: a.Topic, Message: message, Codec: codec, Compatibility: p.cfg.Registry.Compatibility,
	})
}

// kafkaAccess returns how to log in to the brokers. Both TLS and SASL are off by default.
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
