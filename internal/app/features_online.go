package app

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	featureserving "github.com/millrace/millrace/features/serving"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/refusals"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/streams"
)

// vectorFeed is the features in memory, or those in Redis.
type vectorFeed interface {
	featureserving.Backend
	Run(ctx context.Context) error
}

// openVectors connects to Redis if the features are there.
func (p *App) openVectors(ctx context.Context) error {
	if p.cfg.Features.Online.Store != config.OnlineInRedis {
		return nil
	}
	_, err := p.viewSinks.Redis(ctx)
	return err
}

// startVectors starts feeding the features. Every process with the role features answers lookups of all
// entities: from its own memory, or from Redis, which the processes feed together.
func (p *App) startVectors(ctx context.Context) error {
	groups, err := p.modules.Groups(p.cfg)
	if err != nil {
		return err
	}
	deadLetters := streams.NewDeadLetters(p.kafka)
	p.onStop(func() error {
		deadLetters.Close()
		return nil
	})
	var past online.Past // an interface that is nil, and not one that has a nil pointer
	if p.history != nil {
		past = p.history
	}
	c := p.cfg.Features.Online
	if p.vectors, err = p.newVectors(ctx, groups, online.Config{Past: past,
		Brokers: strings.Split(p.kafka.Brokers, ","), Security: p.kafka.Security, Decoder: p.decoder,
		Dir: p.cfg.Path("features"), SaveEvery: c.SnapshotEvery,
		WriteDeadLetters: p.countedLetters("features online", deadLetters.Write),
		Logger:           p.log.With("part", "features"), Tracer: p.tracer,
	}); err != nil {
		return err
	}
	store := p.vectors.Store()
	for name, gauge := range map[string]struct {
		help string
		read func() float64
	}{
		"millrace_features_entities": {"Entities whose features are served.", func() float64 {
			entities, _ := store.Size()
			return float64(entities)
		}},
		"millrace_features_bytes": {"Bytes of the facts and texts in memory.", func() float64 {
			_, bytes := store.Size()
			return float64(bytes)
		}},
		"millrace_features_lag_events": {"Events on the log that the vectors do not reflect.", func() float64 {
			lag, _ := p.vectors.Watermarks().Lag(store.Topics()...)
			return float64(lag)
		}},
	} {
		p.metrics.Gauge(name, gauge.help, gauge.read)
	}
	p.followLive(store, groups)
	p.background("features", p.vectors.Run)
	p.followRefusals()
	p.startServedLog()
	return nil
}

// newVectors returns the feed of the features, with an empty store or the one in Redis.
func (p *App) newVectors(ctx context.Context, groups []*features.Group, feed online.Config) (vectorFeed, error) {
	c := p.cfg.Features.Online
	options := online.Options{MaxEntities: c.MaxEntities, MaxBytes: c.MaxBytes, Retention: c.Retention}
	if c.Store == config.OnlineInRedis {
		client, err := p.viewSinks.Redis(ctx)
		if err != nil {
			return nil, err
		}
		store, err := online.NewShared(client, groups, options)
		if err != nil {
			return nil, err
		}
		return online.NewSharedRunner(store, feed), nil
	}
	store, err := online.New(groups, options)
	if err != nil {
		return nil, err
	}
	return online.NewRunner(store, feed), nil
}

// followRefusals makes it known which customers refuse what, if there are customers. It may be called
// by each part that asks.
func (p *App) followRefusals() {
	if p.refusals == nil && slices.Contains(p.modules.aggregates(), event.Customer) {
		p.refusals = refusals.NewFollower(p.kafka, p.decoder, p.log)
		p.background("consents of customers", p.refusals.Run)
	}
}

// vectorBackend is the features that are served. They are ready once it is known who refuses analytics.
type vectorBackend struct {
	vectorFeed
	refusals *refusals.Follower
}

// Ready implements featureserving.Backend.
func (b vectorBackend) Ready() error {
	if b.refusals != nil {
		if err := b.refusals.Ready(); err != nil {
			return err
		}
	}
	return b.vectorFeed.Ready()
}

// refusesFeatures reports whether entities are the ids of a person who refuses analytics.
func (p *App) refusesFeatures(entity string, ids ...string) bool {
	return p.refusals != nil && entity == CustomerEntity &&
		p.refusals.Refuses(customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, ids...)
}

// vectorServer returns what answers vectors: without those of customers who refuse analytics.
func (p *App) vectorServer() *featureserving.Service {
	s := featureserving.New(vectorBackend{p.vectors, p.refusals}, time.Now)
	if p.refusals != nil {
		s.WithholdFrom(CustomerEntity, func(ids ...string) bool { return p.refusesFeatures(CustomerEntity, ids...) })
	}
	if p.served != nil {
		s.LogTo(p.served)
	}
	return s
}

// feastAddrs returns the addresses of Feast's online and offline store. A default one is probably in
// use by another system if this system has been moved to another address. Then a free port is chosen.
func (p *App) feastAddrs() map[string]string {
	usual := config.Default()
	addrs := map[string]string{}
	for listener, of := range map[string]struct{ set, usual string }{
		"feast":         {p.cfg.Features.FeastAddr, usual.Features.FeastAddr},
		"feast_offline": {p.cfg.Features.FeastOfflineAddr, usual.Features.FeastOfflineAddr},
	} {
		switch {
		case of.set == "":
		case of.set == of.usual && p.cfg.Addr != usual.Addr:
			addrs[listener] = "127.0.0.1:0"
		default:
			addrs[listener] = of.set
		}
	}
	return addrs
}

// vectorService returns FeatureService, guarded as other queries.
func (p *App) vectorService(opts ...connect.HandlerOption) (string, http.Handler) {
	return p.guarded(featuresv1connect.NewFeatureServiceHandler(p.vectorServer(),
		append(opts, rpc.HandlerOptions(p.log, time.Now)...)...))
}

// feast returns the HTTP API of Feast's feature server. It requires the same right as FeatureService.
func (p *App) feast() http.Handler {
	right := func(*http.Request) auth.Right { return auth.On(auth.Queries, auth.FeatureQueries) }
	api := featureserving.NewFeast(p.vectorServer(), func(h http.Handler) http.Handler {
		return auth.Need(right, p.limiter.Admit(server.As(server.Query), refuseFeast, h))
	})
	return featureserving.FeastErrors(p.tokens.Guard(api, "/health"))
}

// refuseFeast answers a request that the limiter does not admit.
func refuseFeast(w http.ResponseWriter, _ *http.Request, err error) {
	status := http.StatusServiceUnavailable // the caller has gone, or its deadline has passed
	if errors.Is(err, server.ErrOverloaded) {
		w.Header().Set("Retry-After", server.RetryAfter)
		status = http.StatusTooManyRequests
	}
	http.Error(w, err.Error(), status) // in Feast's form by FeastErrors
}
