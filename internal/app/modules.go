package app

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"net/http"
	"slices"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	catalogcommands "github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/customer"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/identity"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/flags"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/declare"
	laketables "github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/processes/identification"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/readmodels/versions"
	"github.com/millrace/millrace/streams"
)

// Shop returns the modules of Millrace: the one list of what a process can run. A new service or
// view is one more line; docs/adding-a-service.md explains it.
func Shop() Modules {
	return Modules{
		Services: []Service{ // in the order of status and verify
			{event.Customer, customer.NewHandler, laketables.Of(event.Customer)},
			{event.Product, catalogcommands.NewHandler, laketables.Of(event.Product)},
			{event.Stock, inventory.NewHandler, laketables.Of(event.Stock)},
			{event.Order, order.NewHandler, laketables.Of(event.Order)},
			{event.Identity, identity.NewHandler, laketables.Of(event.Identity)},
		},
		Views: []View{
			inRedis(orderstatus.Name, orderstatus.Projection, orderstatus.NewVersion,
				feed(event.Order, orderstatus.ExpectedDigest)),
			inSearch(catalog.Name, catalog.Projection, catalog.NewVersion, feed(event.Product, catalog.ExpectedDigest)),
			withSegments(inRedis(customer360.Name, customer360.Projection, customer360.NewVersion,
				feed(event.Customer, customerFacts.ExpectedDigest),
				feed(event.Order, customerFacts.ExpectedDigest), feed(event.Identity, customerFacts.ExpectedDigest),
				outside(event.Behavior, customer360.ExpectedBehavior))),
		},
		Sources: []Source{
			{event.Behavior, []declare.Table{laketables.BehaviorEvents}},
		},
		Processes: []Process{
			{identification.Name, openIdentification},
		},
		Groups: func(c config.Config) ([]*features.Group, error) { return FeatureGroups(c.Features) },
	}
}

// Modules are the services, views, sources and processes that a process consists of. The rest of this package
// iterates over them and names none. Tests pass others than those of Shop.
type Modules struct {
	Services []Service
	Views    []View
	Sources  []Source
	// Processes turn events into commands.
	Processes []Process
	// Groups returns the feature groups. It may be nil.
	Groups func(config.Config) ([]*features.Group, error)
}

// Source is a topic of facts that come from outside. There is no store behind it, so nothing relays
// or rebuilds it.
type Source struct {
	Aggregate event.Aggregate
	// Tables are fed by the topic.
	Tables []declare.Table
}

// Service is a module that takes commands. The process opens a store for its aggregate, serves its
// handler, relays its events to its topic, lands its tables and verifies all of them.
type Service struct {
	Aggregate event.Aggregate
	// Handler serves the commands on the service's store. It returns the path to mount it on,
	// which is the name of the contract, and the handler.
	Handler func(eventstore.Store, ...commands.Option) (string, http.Handler)
	// Tables are fed by the aggregate's topic: the table of its events, and those derived from it.
	Tables []declare.Table
}

// View is a module that answers queries from a projection of events, of one aggregate or several.
type View struct {
	Name  string // with its version: "orderstatus/v2"
	Feeds []Feed
	// Open opens a version of the view in its sink, whose name is that of the view for the first
	// version. The process owns the sink and closes it.
	Open func(ctx context.Context, sinks *Sinks, sink string) (OpenView, error)
	// Drop empties the sink of a version. Nothing may feed it at the same time.
	Drop func(ctx context.Context, sinks *Sinks, sink string) error
	// Versions returns where the record of the view's versions is. If it is nil, the view has one
	// version only.
	Versions func(context.Context, *Sinks) (versions.Store, error)
	// Projection is the number of the projection that the code has. A version that was built by
	// another one is reported.
	Projection int
}

// Feed is an aggregate whose events a view shows.
type Feed struct {
	Aggregate event.Aggregate
	// Expected computes the digest of a view that has applied exactly these events. It is nil if
	// there is no store to compare with.
	Expected func(iter.Seq2[event.Event, error]) (*digest.Digest, error)
	// ExpectedOfTopic does the same from the records of a topic without a store.
	ExpectedOfTopic func(iter.Seq2[streams.Record, error]) (*digest.Digest, error)
}

// feed returns a feed that verify compares with its store.
func feed(of event.Aggregate, expected func(iter.Seq2[event.Event, error]) (*digest.Digest, error)) Feed {
	return Feed{Aggregate: of, Expected: expected}
}

// outside returns a feed of facts that come from outside, which verify compares with their topic.
func outside(of event.Aggregate, expected func(iter.Seq2[streams.Record, error]) (*digest.Digest, error)) Feed {
	return Feed{Aggregate: of, ExpectedOfTopic: expected}
}

// OpenView is a version of a view that is open in its sink. A process uses either Runtime or Follower, by its
// roles. Digest is what the view contains of a feed; Feed.Expected is what it should contain.
type OpenView interface {
	// Handler serves the view's queries.
	Handler(...connect.HandlerOption) (string, http.Handler)
	// Runtime feeds the view. Follower only observes how far another process has fed it.
	Runtime(kafka.Config, *registry.Decoder, *slog.Logger) *streams.Runtime
	Follower(kafka.Config, *slog.Logger) *streams.Follower
	Status(context.Context) (readmodels.Status, error)
	Digest(context.Context, event.Aggregate) (*digest.Digest, error)
	Faults() *streams.Faults
}

// aggregates returns the services' aggregates, in the order of the services.
func (m Modules) aggregates() []event.Aggregate {
	all := make([]event.Aggregate, len(m.Services))
	for i, s := range m.Services {
		all[i] = s.Aggregate
	}
	return all
}

// topics returns the topics of all modules: those of the services, in their order, and those of the
// sources.
func (m Modules) topics() []string {
	all := make([]string, 0, len(m.Services)+len(m.Sources))
	for _, s := range m.Services {
		all = append(all, s.Aggregate.Topic)
	}
	for _, s := range m.Sources {
		all = append(all, s.Aggregate.Topic)
	}
	return all
}

// logs returns the topics of the log, with the relays' own and those of flags, as they are created.
func (m Modules) logs(c config.Kafka) []kafka.Topic {
	return slices.Concat(retained(c, relay.Topics(m.aggregates(), int32(c.Partitions))), m.sourceTopics(c), flags.Topics())
}

// retained returns topics of events with the configured retention.
func retained(c config.Kafka, topics []kafka.Topic) []kafka.Topic {
	for i := range topics {
		if !topics[i].Compacted {
			topics[i].Retention = c.Retention
		}
	}
	return topics
}

// sourceTopics returns the topics of the sources, as they are created.
func (m Modules) sourceTopics(c config.Kafka) (all []kafka.Topic) {
	for _, s := range m.Sources {
		all = append(all, kafka.Topic{Name: s.Aggregate.Topic, Partitions: int32(c.Partitions)})
	}
	return retained(c, all)
}

// tables returns the tables of all modules: first events, then facts, then states.
func (m Modules) tables() []declare.Table {
	var all []declare.Table
	for _, s := range m.Services {
		all = append(all, s.Tables...)
	}
	for _, s := range m.Sources {
		all = append(all, s.Tables...)
	}
	kind := func(t declare.Table) int {
		switch {
		case t.Events.Name != "":
			return 0
		case t.Upserts == nil:
			return 1
		}
		return 2
	}
	// Stable, so that the services keep their order within each kind.
	slices.SortStableFunc(all, func(a, b declare.Table) int { return cmp.Compare(kind(a), kind(b)) })
	return all
}

// viewsOf returns the views that an aggregate feeds. A rebuild of its topic drops them.
func (m Modules) viewsOf(a event.Aggregate) []View {
	return slices.DeleteFunc(slices.Clone(m.Views), func(v View) bool {
		return !slices.ContainsFunc(v.Feeds, func(f Feed) bool { return f.Aggregate == a })
	})
}
