package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/config"
	embeddedredis "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/bleve"
	"github.com/millrace/millrace/readmodels/catalog/elasticsearch"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/readmodels/versions"
	"github.com/millrace/millrace/streams"
)

// Sinks are the servers that store the views' documents. Each is connected, or started in this
// process, when the first view needs it. It is not safe for concurrent use: views are opened one by
// one. A process whose modules have no view in Redis needs no Redis.
type Sinks struct {
	app    *App
	redis  *redis.Client
	damage error         // found in the files of the embedded Redis; nil if there was none
	index  catalog.Index // of products
}

// inRedis declares a view that keeps its documents in Redis. All views in Redis share one client,
// and each has keys of its own, by its name.
func inRedis[V OpenView](
	name string, projection int, open func(client *redis.Client, sink string, log *slog.Logger) V, feeds ...Feed,
) View {
	return View{
		Name: name, Projection: projection, Feeds: feeds,
		Open: func(ctx context.Context, s *Sinks, sink string) (OpenView, error) {
			client, err := s.Redis(ctx)
			if err != nil {
				return nil, err
			}
			v := open(client, sink, s.app.log)
			// The embedded Redis has set damaged files aside, and starts empty. The view reports
			// that until it is rebuilt.
			if s.damage != nil {
				v.Faults().Report(s.app.log, sink, "files", s.damage.Error())
			}
			return v, nil
		},
		Drop: func(ctx context.Context, s *Sinks, sink string) error {
			client, err := s.Redis(ctx)
			if err != nil {
				return err
			}
			return client.Documents(sink).Drop(ctx)
		},
		Versions: func(ctx context.Context, s *Sinks) (versions.Store, error) { return s.Redis(ctx) },
	}
}

// withSegments gives the view of customers its features and the configured segments.
func withSegments(v View) View {
	open := v.Open
	v.Open = func(ctx context.Context, s *Sinks, sink string) (OpenView, error) {
		segments, err := customerSegments(s.app.cfg.Customer360)
		if err != nil {
			return nil, err
		}
		opened, err := open(ctx, s, sink)
		if err != nil {
			return nil, err
		}
		customers, ok := opened.(*customer360.View)
		if !ok {
			return nil, fmt.Errorf("%T has no segments", opened)
		}
		groups, err := FeatureGroups(s.app.cfg.Features)
		if err != nil {
			return nil, err
		}
		customers.SetFeatures(customerFacts, newCustomerFeatures(newestVersions(groups)))
		limits := s.app.cfg.Customer360.Limits
		return opened, prefixed(customers.SetSegments(segments, customer360.Limits{Segments: limits.Segments,
			Cost: limits.Cost, Pending: limits.Pending, Recheck: limits.Recheck}))
	}
	return v
}

// customerSegments returns the configured segments.
func customerSegments(c config.Customer360) ([]customer360.Segment, error) {
	var all []customer360.Segment
	for _, name := range slices.Sorted(maps.Keys(c.Segments)) {
		s := c.Segments[name]
		purpose, err := customer360.ParsePurpose(s.Purpose)
		if err != nil {
			return nil, prefixed(fmt.Errorf("segment %q: %w", name, err))
		}
		all = append(all, customer360.Segment{
			Name: name, Expression: s.Expression, Description: s.Description, Purpose: purpose,
		})
	}
	return all, nil
}

// prefixed adds the name of the setting to an error.
func prefixed(err error) error {
	if err != nil {
		return fmt.Errorf("customer360.segments: %w", err)
	}
	return nil
}

// inSearch declares a view that keeps its documents in the search engine. There is one index, and
// its documents are products.
func inSearch[V OpenView](
	name string, open func(catalog.Index, *slog.Logger) V, feeds ...Feed,
) View {
	return View{
		Name: name, Feeds: feeds,
		Open: func(ctx context.Context, s *Sinks, _ string) (OpenView, error) {
			index, err := s.Search(ctx)
			if err != nil {
				return nil, err
			}
			return open(index, s.app.log), nil
		},
		Drop: func(ctx context.Context, s *Sinks, _ string) error { return s.dropIndex(ctx) },
	}
}

// Redis returns the client of the configured Redis, or of an embedded one.
func (s *Sinks) Redis(ctx context.Context) (*redis.Client, error) {
	// All views share one client.
	if s.redis != nil {
		return s.redis, nil
	}
	if err := s.startRedis(ctx); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return s.redis, nil
}

// startRedis connects to Redis, and starts an embedded one if none is configured. It records damage
// that the embedded one found in its files.
func (s *Sinks) startRedis(ctx context.Context) error {
	// The App stops the server and the client in the reverse order, so the client is closed first.
	p, c := s.app, s.app.cfg.Redis
	addr := c.Addr
	if addr == "" {
		server, err := embeddedredis.Start(ctx, embeddedredis.Config{Addr: c.Listen, Dir: p.cfg.Path("redis"),
			Logger: p.log})
		if err != nil {
			return addressInUse(err, c.Listen, "redis.listen")
		}
		p.onStop(func() error {
			server.Close()
			return nil
		})
		addr, s.damage = server.Addr(), server.Damage()
	}
	p.addresses["redis"] = addr
	password, err := c.Password.Reveal("")
	if err != nil {
		return fmt.Errorf("redis.password: %w", err)
	}
	trust, err := c.TLS.Client()
	if err != nil {
		return fmt.Errorf("redis.tls: %w", err)
	}
	client, err := redis.Open(ctx, redis.Config{Addr: addr, Username: c.User, Password: password, TLS: trust})
	if err != nil {
		return err
	}
	s.redis = client
	p.onStop(client.Close)
	return nil
}

// Search returns the index in the configured Elasticsearch, or an embedded one.
func (s *Sinks) Search(ctx context.Context) (catalog.Index, error) {
	if s.index != nil {
		return s.index, nil
	}
	// The view and the settings check share one index.
	index, err := s.openIndex(ctx)
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	s.index = index
	s.app.onStop(index.Close)
	return index, nil
}

// openIndex opens the index that Search returns.
func (s *Sinks) openIndex(ctx context.Context) (catalog.Index, error) {
	c := s.app.cfg.Search
	if c.Elasticsearch == "" {
		return bleve.Open(s.app.cfg.Path("search"), s.app.log)
	}
	e, err := elasticsearchConfig(c, s.app.log)
	if err != nil {
		return nil, err
	}
	s.app.addresses["elasticsearch"] = c.Elasticsearch
	return elasticsearch.Open(ctx, e)
}

// dropIndex deletes the index. It must not be open, because its owner would write to it again.
func (s *Sinks) dropIndex(ctx context.Context) error {
	if s.index != nil {
		return errors.New("the search index is open: drop it before any view of it is opened")
	}
	c := s.app.cfg.Search
	if c.Elasticsearch == "" {
		return bleve.Drop(s.app.cfg.Path("search"))
	}
	e, err := elasticsearchConfig(c, s.app.log)
	if err != nil {
		return err
	}
	return elasticsearch.Drop(ctx, e)
}

// elasticsearchConfig returns the addresses and credentials of Elasticsearch.
func elasticsearchConfig(c config.Search, log *slog.Logger) (elasticsearch.Config, error) {
	password, err := c.Password.Reveal("")
	if err != nil {
		return elasticsearch.Config{}, fmt.Errorf("search.password: %w", err)
	}
	trust, err := c.TLS.Client()
	if err != nil {
		return elasticsearch.Config{}, fmt.Errorf("search.tls: %w", err)
	}
	// One address per node; commas and spaces both separate them.
	addresses := strings.FieldsFunc(c.Elasticsearch, func(r rune) bool { return r == ',' || r == ' ' })
	return elasticsearch.Config{Addresses: addresses, Username: c.User, Password: password, TLS: trust,
		Logger: log}, nil
}

// openViews opens every view in its sink.
func (p *App) openViews(ctx context.Context) error {
	for _, declared := range p.modules.Views {
		v, err := p.openView(ctx, declared)
		if err != nil {
			return fmt.Errorf("%s: %w", declared.Name, err)
		}
		p.views = append(p.views, v)
	}
	p.metrics.Labelled("millrace_view_damaged",
		"1 for each part of a view that is damaged and being rebuilt from the log.",
		[]string{"view", "part"}, func(is func(labels ...string)) {
			for _, o := range p.versions() {
				for _, fault := range o.Faults().List() {
					is(o.sink, fault.Part)
				}
			}
		})
	return nil
}

// startRunners starts feeding the views. Processes with the role views share the partitions.
func (p *App) startRunners(context.Context) error {
	for _, v := range p.views {
		v.start(true)
	}
	parked := func(of func(streams, events int) int) func(func(value float64, labels ...string)) {
		return func(set func(value float64, labels ...string)) {
			for _, o := range p.versions() {
				if r, ok := o.runner.(*streams.Runtime); ok {
					set(float64(of(r.Parked())), "view "+o.sink)
				}
			}
		}
	}
	p.metrics.Values("millrace_parked_streams",
		"Streams of this process's partitions that wait because a sink could not apply an event.", []string{"sink"},
		parked(func(streams, _ int) int { return streams }))
	p.metrics.Values("millrace_parked_events", "Events of parked streams that are not applied.", []string{"sink"},
		parked(func(_, events int) int { return events }))
	return nil
}

// startFollowers starts following the views, which other processes feed.
func (p *App) startFollowers(context.Context) error {
	for _, v := range p.views {
		v.start(false)
	}
	return nil
}
