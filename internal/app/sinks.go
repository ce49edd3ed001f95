package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
// process, when the first view needs it. The first views are opened one by one; after that, it is safe
// for concurrent use. A process whose modules have no view in Redis needs no Redis.
type Sinks struct {
	app    *App
	redis  *redis.Client
	damage error // found in the files of the embedded Redis; nil if there was none
	// members of segments, for all versions of the view of customers.
	members *customer360.Members

	// mu protects indexes: versions of the view are opened and dropped while the process runs.
	mu      sync.Mutex
	indexes map[string]catalog.Index // of products, by sink
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
		customers.UseMembers(s.members)
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

// inSearch declares a view that keeps its documents in the search engine. There is one index for each
// version, and its documents are products.
func inSearch[V OpenView](
	name string, projection int, open func(index catalog.Index, sink string, log *slog.Logger) V, feeds ...Feed,
) View {
	return View{
		Name: name, Projection: projection, Feeds: feeds,
		Open: func(ctx context.Context, s *Sinks, sink string) (OpenView, error) {
			index, err := s.Search(ctx, sink)
			if err != nil {
				return nil, err
			}
			return open(index, sink, s.app.log), nil
		},
		Drop: func(ctx context.Context, s *Sinks, sink string) error { return s.dropIndex(ctx, sink) },
		// One place for the records of all views, so that one kind of store suffices.
		Versions: func(ctx context.Context, s *Sinks) (versions.Store, error) { return s.Redis(ctx) },
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
	client, err := redis.Open(ctx, redis.Config{Addr: addr, Username: c.User, Password: password, TLS: trust,
		Dependency: p.dependencies.Named("redis")})
	if err != nil {
		return err
	}
	s.redis = client
	p.onStop(client.Close)
	return nil
}

// Search returns the index of a version, in the configured Elasticsearch or an embedded one.
func (s *Sinks) Search(ctx context.Context, sink string) (catalog.Index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index := s.indexes[sink]; index != nil {
		return index, nil
	}
	index, err := s.openIndex(ctx, sink)
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	if s.indexes == nil {
		s.indexes = map[string]catalog.Index{}
		s.app.onStop(s.closeIndexes)
	}
	s.indexes[sink] = index
	return index, nil
}

// openIndexes returns the open indexes, by sink.
func (s *Sinks) openIndexes() map[string]catalog.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.indexes)
}

// closeIndexes closes all indexes.
func (s *Sinks) closeIndexes() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, index := range s.indexes {
		errs = append(errs, index.Close())
	}
	clear(s.indexes)
	return errors.Join(errs...)
}

// openIndex opens the index that Search returns.
func (s *Sinks) openIndex(ctx context.Context, sink string) (catalog.Index, error) {
	c := s.app.cfg.Search
	if c.Elasticsearch == "" {
		return bleve.Open(s.searchFolder(sink), s.app.log)
	}
	e, err := s.elasticsearch(sink)
	if err != nil {
		return nil, err
	}
	if sink == catalog.Name { // at the start, when nobody reads the addresses yet
		s.app.addresses["elasticsearch"] = c.Elasticsearch
	}
	return elasticsearch.Open(ctx, e)
}

// searchFolder returns the folder of a version of the embedded index.
func (s *Sinks) searchFolder(sink string) string {
	_, version := versions.ParseSink(sink)
	if version == "" {
		return s.app.cfg.Path("search")
	}
	return filepath.Join(s.app.cfg.Path("search"), "versions", version)
}

// dropIndex deletes the index of a version, and closes it before. Nothing may use it any more.
func (s *Sinks) dropIndex(ctx context.Context, sink string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index := s.indexes[sink]; index != nil {
		delete(s.indexes, sink)
		if err := index.Close(); err != nil {
			return err
		}
	}
	c := s.app.cfg.Search
	if c.Elasticsearch == "" {
		return bleve.Drop(s.searchFolder(sink))
	}
	e, err := s.elasticsearch(sink)
	if err != nil {
		return err
	}
	return elasticsearch.Drop(ctx, e)
}

// elasticsearch returns the configuration of a version's index, with its guard.
func (s *Sinks) elasticsearch(sink string) (elasticsearch.Config, error) {
	c, err := elasticsearchConfig(s.app.cfg.Search, sink, s.app.log)
	c.Dependency = s.app.dependencies.Named("elasticsearch")
	return c, err
}

// elasticsearchConfig returns the addresses and credentials of Elasticsearch.
func elasticsearchConfig(c config.Search, sink string, log *slog.Logger) (elasticsearch.Config, error) {
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
		Sink: sink, Logger: log}, nil
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
	p.viewArchive = &viewArchive{app: p}
	p.onStop(p.viewArchive.Close)
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
