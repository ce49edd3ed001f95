// Package postgres is the event store in a schema of a PostgreSQL database, the store for
// production. Among the event stores it is the only package that imports pgx.
//
// Store combines a writer, which has one connection, and a pool for reads. Open migrates the schema
// if its role may, and Migrate does it for an operator. identity.go refuses servers that lost
// events, and settings.go checks the server's settings.
//
// Order: transactions do not commit in the order of their ids. A reader that remembers the last
// position would miss events that commit later at lower positions. So an event's position is the id
// of its transaction and its place in it, and Read returns only events of transactions older than
// every open one. No later event can precede them. A transaction that is left open anywhere on the
// database server, in any of its databases, holds Read back. Wait logs which one it is.
//
// A stream's events are in the order of their versions, too. The previous event was committed when
// the insert began, and the insert is the first statement of its transaction that needs an id. So
// its id is higher.
//
// Appends: as with SQLite, one goroutine stores all waiting calls in one transaction. It uses one
// statement for all events, one for all answers and one for all snapshots, in two round trips. The
// tables' keys decide races. If a call loses one, the transaction is rolled back and the others are
// stored without it. So conflicts are expensive, but every batch is stored completely or not at
// all. Rows are inserted in the order of their keys, so instances of a service cannot deadlock.
//
// Durability is the server's: an acknowledged append is as safe as synchronous_commit and the
// replicas make it. Transaction ids are part of positions, so restore a database from a physical
// backup, never from a dump into a new server, which would count transactions from the beginning.
// Open refuses such a store.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
)

// Store is an eventstore.Store in a schema of a PostgreSQL database.
type Store struct {
	aggregate event.Aggregate
	options   options

	// inFlight lets Close wait for calls, appends is the group commit, and committed wakes Wait
	// after a commit of this process.
	inFlight  *adapter.InFlight
	appends   *adapter.Writer
	committed adapter.Broadcaster

	// writer is used by the group commit only, and reads by all other calls. identity checks each
	// new connection of both.
	identity identity
	writer   *writer
	reads    *pgxpool.Pool
}

var _ eventstore.Store = (*Store)(nil)

// options are what Options set; see the With functions.
type options struct {
	schema       string
	password     string
	poll         time.Duration // interval of Wait's polling
	blockedAfter time.Duration // how long events may be held back before Wait logs it
	logger       *slog.Logger

	queryTimeout time.Duration // limit of one query
	scanTimeout  time.Duration // limit of a query that reads many events
}

// Option configures a store.
type Option func(*options)

// WithSchema sets the schema. The default is "millrace_" and the aggregate's service.
func WithSchema(name string) Option { return func(o *options) { o.schema = name } }

// WithPassword sets the password of the connection string's user, so that the string need not
// contain it. An empty password changes nothing.
func WithPassword(password string) Option { return func(o *options) { o.password = password } }

// WithPoll sets how often Wait polls for appends of other processes and for events that were held
// back. The default is 25 ms.
func WithPoll(interval time.Duration) Option { return func(o *options) { o.poll = interval } }

// WithBlockedWarning sets how long an open transaction may hold events back before Wait logs it.
// The default is 10 s.
func WithBlockedWarning(after time.Duration) Option {
	return func(o *options) { o.blockedAfter = after }
}

// WithQueryTimeout sets how long a query may take, for callers that set no limit themselves. The
// default is 30 s, and 5 minutes for Stats and Open. A server that hangs keeps its connections and
// does not answer.
func WithQueryTimeout(limit time.Duration) Option {
	return func(o *options) { o.queryTimeout, o.scanTimeout = limit, limit }
}

// WithLogger sets the logger. The default is slog.Default().
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// newOptions returns the defaults, changed by opts.
func newOptions(aggregate event.Aggregate, opts []Option) options {
	o := options{
		schema: "millrace_" + aggregate.Service, poll: 25 * time.Millisecond, blockedAfter: 10 * time.Second,
		logger: slog.Default(), queryTimeout: groupTimeout, scanTimeout: 5 * time.Minute,
	}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// parse parses a connection string. Its errors do not contain the password.
func (o options) parse(conn string, aggregate event.Aggregate) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(conn)
	if err != nil {
		return nil, err
	}
	if o.password != "" {
		config.ConnConfig.Password = o.password
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	// The statements name no schema. This makes them use the store's.
	config.ConnConfig.RuntimeParams["search_path"] = pgx.Identifier{o.schema}.Sanitize()
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "millrace " + aggregate.Service
	}
	return config, nil
}

// Open opens the event store of aggregate in the database that conn, a PostgreSQL URL or keyword
// string, names. If the tables are missing or older, it migrates them, provided that its role may.
// Otherwise Migrate must have been run, and the role needs only the rights that
// deploy/postgres/roles.sql grants. Open fails if the schema has the events of another aggregate,
// was migrated by a newer version of Millrace, or comes from another server.
//
// One connection is for appends. In addition, reads use up to pool_max_conns of conn.
func Open(ctx context.Context, conn string, aggregate event.Aggregate, opts ...Option) (*Store, error) {
	o := newOptions(aggregate, opts)
	s := &Store{
		aggregate: aggregate, options: o, inFlight: adapter.NewInFlight(),
		identity: identity{schema: o.schema, aggregate: aggregate},
	}
	ctx, cancel := context.WithTimeout(ctx, o.scanTimeout) // a migration may take long
	defer cancel()
	if err := s.connect(ctx, conn); err != nil {
		return nil, fmt.Errorf("open event store of %s in PostgreSQL schema %s: %w", aggregate.Name, o.schema, err)
	}
	s.appends = adapter.StartWriter(s.store)
	return s, nil
}

// connect opens the pools and checks the schema.
func (s *Store) connect(ctx context.Context, conn string) error {
	config, err := s.options.parse(conn, s.aggregate)
	if err != nil {
		return err
	}
	// Each connection is checked, because it may be to another server than the last one.
	config.AfterConnect = s.checkConnection
	// The writer has a pool of one connection, which reconnects by itself.
	alone := config.Copy()
	alone.MaxConns, alone.MinConns, alone.MinIdleConns = 1, 0, 0
	writes, err := pgxpool.NewWithConfig(ctx, alone)
	if err != nil {
		return err
	}
	err = writes.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		if err := ensureSchema(ctx, c.Conn(), s.options.schema, s.aggregate); err != nil {
			return err
		}
		return s.identity.load(ctx, c.Conn())
	})
	if err != nil {
		writes.Close()
		return err
	}
	if s.reads, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		writes.Close()
		return err
	}
	s.writer = &writer{pool: writes, committed: s.identity.committed}
	return nil
}

// enter begins a call and bounds its time. The returned function ends it.
func (s *Store) enter(ctx context.Context, within time.Duration) (context.Context, func(), error) {
	if err := s.inFlight.Enter(); err != nil {
		return ctx, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	return ctx, func() { cancel(); s.inFlight.Leave() }, nil
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := s.inFlight.Enter(); err != nil {
		return eventstore.Appended{}, err
	}
	defer s.inFlight.Leave()
	return s.appends.Append(ctx, b)
}

// store resolves the calls of a group. It returns calls that lost a race and can succeed on a
// retry.
func (s *Store) store(group []*adapter.Call) (again []*adapter.Call) {
	fail := func(calls []*adapter.Call, err error) {
		for _, c := range calls {
			c.Resolve(eventstore.Appended{}, fmt.Errorf("append to the store of %s: %w", s.aggregate.Name, err))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.options.queryTimeout)
	defer cancel()

	// In each round, store what can be stored together. A call that lost a race leaves the round,
	// and the others are tried again without it.
	chosen, undecided := choose(group)
	for len(chosen) > 0 {
		positions, lost, err := s.writer.store(ctx, chosen)
		if err != nil {
			fail(chosen, err)
			break
		}
		if len(lost) == 0 {
			s.committed.Broadcast()
			for i, c := range chosen {
				c.Resolve(eventstore.Appended{Position: positions[i]}, nil)
			}
			break
		}
		chosen, undecided = split(chosen, undecided, lost)
	}

	// Calls that lost a race, or clashed with another call of the group, get the reason. If the
	// store shows none, the cause is gone or was in this group: retry.
	refusals, err := s.writer.refusals(ctx, undecided)
	if err != nil {
		fail(undecided, err)
		return nil
	}
	for i, c := range undecided {
		if refusals[i] != nil {
			c.Resolve(eventstore.Appended{}, refusals[i])
		} else {
			again = append(again, c)
		}
	}
	return again
}

// choose returns calls that share no stream and no key. Of calls that share one, it chooses the
// first. The others are clashing.
func choose(group []*adapter.Call) (chosen, clashing []*adapter.Call) {
	streams, keys := map[string]struct{}{}, map[string]struct{}{}
next:
	for _, c := range group {
		if _, taken := keys[c.Batch.Answer.Key]; taken {
			clashing = append(clashing, c)
			continue
		}
		// Snapshots count, too: one statement cannot update a row twice.
		touched := make([]string, 0, len(c.Batch.Streams)+len(c.Batch.Snapshots))
		for _, s := range c.Batch.Streams {
			touched = append(touched, s.Stream)
		}
		for _, s := range c.Batch.Snapshots {
			touched = append(touched, s.Stream)
		}
		for _, stream := range touched {
			if _, taken := streams[stream]; taken {
				clashing = append(clashing, c)
				continue next
			}
		}
		for _, stream := range touched {
			streams[stream] = struct{}{}
		}
		if c.Batch.Answer.Key != "" {
			keys[c.Batch.Answer.Key] = struct{}{}
		}
		chosen = append(chosen, c)
	}
	return chosen, clashing
}

// split moves the calls that lost from chosen to undecided.
func split(chosen, undecided []*adapter.Call, lost map[int]bool) (left, both []*adapter.Call) {
	for i, c := range chosen {
		if lost[i] {
			undecided = append(undecided, c)
		} else {
			left = append(left, c)
		}
	}
	return left, undecided
}

// Close implements eventstore.Store.
func (s *Store) Close() error {
	if !s.inFlight.Close() {
		return nil
	}
	s.appends.Stop()
	s.writer.pool.Close()
	s.reads.Close()
	return nil
}

// noRows reports whether err means that a query returned no row.
func noRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
