// Package postgres keeps one service's events in a schema of a PostgreSQL database: the store of
// production. It is the one package that knows pgx.
//
// Order: transactions do not commit in the order in which they took their numbers, so a reader that
// remembers the last position it saw would lose what commits later in front of it. An event's
// position is therefore the id of the transaction that wrote it and its place therein, and Read
// returns only events of transactions older than every one still open, which nothing can precede
// any more. A transaction that is left open anywhere in the database server, in any of its
// databases, holds Read back; Wait logs who it is.
//
// A stream's events stand in the order of their versions, too: the event before was committed when
// the insert began, and the insert is the first statement of its transaction that needs an id, so
// that its id is the higher one.
//
// Appends: as with SQLite, one goroutine takes whatever calls wait and stores them in one
// transaction, with one statement for all events, one for all answers and one for all snapshots, in
// two round trips. The tables' keys decide who loses a race; if somebody did, the transaction is
// rolled back, the losers are told, and the others are stored without them. So conflicts cost,
// which in optimistic concurrency they always do, and every batch is whole or not at all. Rows are
// inserted in the order of their keys, so instances of a service cannot lock each other up.
//
// Durability is the server's: an append that was answered is as safe as its synchronous_commit and
// its replicas make it. Transaction ids are part of the positions: restore a database from a
// physical backup, never from a dump into a new server, which would count transactions from the
// beginning. Open refuses such a store.
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

	gate      *adapter.InFlight
	appends   *adapter.Writer
	committed adapter.Broadcaster

	identity identity
	writer   *writer
	reads    *pgxpool.Pool
}

var _ eventstore.Store = (*Store)(nil)

type options struct {
	schema     string
	password   string
	poll       time.Duration
	alarmAfter time.Duration
	logger     *slog.Logger

	answerWithin time.Duration // of one question
	countWithin  time.Duration // of one that looks at many events
}

// Option changes how a store is opened.
type Option func(*options)

// WithSchema names the schema; without it, it is "millrace_" and the aggregate's service.
func WithSchema(name string) Option { return func(o *options) { o.schema = name } }

// WithPassword is the password of the connection string's user, so that it need not stand
// there. Empty changes nothing.
func WithPassword(password string) Option { return func(o *options) { o.password = password } }

// WithPoll sets how often Wait looks for what other processes have appended, or open transactions
// have held back; 25 ms without it.
func WithPoll(interval time.Duration) Option { return func(o *options) { o.poll = interval } }

// WithAlarm sets how long events may be held back by an open transaction until Wait logs who does
// it; 10 s without it.
func WithAlarm(after time.Duration) Option { return func(o *options) { o.alarmAfter = after } }

// WithAnswerWithin sets how long a question to the server may take, for callers who set no limit
// themselves; 30 s without it. A server that hangs keeps its connections and answers nothing.
func WithAnswerWithin(limit time.Duration) Option {
	return func(o *options) { o.answerWithin, o.countWithin = limit, limit }
}

// WithLogger sets where the store logs; slog.Default() without it.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

func newOptions(aggregate event.Aggregate, opts []Option) options {
	o := options{
		schema: "millrace_" + aggregate.Service, poll: 25 * time.Millisecond, alarmAfter: 10 * time.Second,
		logger: slog.Default(), answerWithin: storeWithin, countWithin: 5 * time.Minute,
	}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// parse reads a connection string. No error of it tells a password.
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
	config.ConnConfig.RuntimeParams["search_path"] = pgx.Identifier{o.schema}.Sanitize()
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "millrace " + aggregate.Service
	}
	return config, nil
}

// Open opens the event store of aggregate in the database that conn, a PostgreSQL URL or keyword
// string, names. Where there are no tables, or older ones, it makes them if its role may; else
// Migrate must have been run, and the role needs no more than roles.sql in deploy/postgres gives
// it. Open fails if the schema holds the events of another aggregate, was migrated by a newer
// version of Millrace, or comes from another server.
//
// One connection is for appends; beside it reads use up to pool_max_conns of conn.
func Open(ctx context.Context, conn string, aggregate event.Aggregate, opts ...Option) (*Store, error) {
	o := newOptions(aggregate, opts)
	s := &Store{
		aggregate: aggregate, options: o, gate: adapter.NewInFlight(), identity: identity{schema: o.schema, aggregate: aggregate},
	}
	ctx, cancel := context.WithTimeout(ctx, o.countWithin) // a migration may have much to do
	defer cancel()
	if err := s.connect(ctx, conn); err != nil {
		return nil, fmt.Errorf("open event store of %s in PostgreSQL schema %s: %w", aggregate.Name, o.schema, err)
	}
	s.appends = adapter.StartWriter(s.store)
	return s, nil
}

func (s *Store) connect(ctx context.Context, conn string) error {
	config, err := s.options.parse(conn, s.aggregate)
	if err != nil {
		return err
	}
	config.AfterConnect = s.connected
	alone := config.Copy()
	alone.MaxConns, alone.MinConns, alone.MinIdleConns = 1, 0, 0
	writes, err := pgxpool.NewWithConfig(ctx, alone)
	if err != nil {
		return err
	}
	err = writes.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		if err := ensure(ctx, c.Conn(), s.options.schema, s.aggregate); err != nil {
			return err
		}
		return s.identity.learn(ctx, c.Conn())
	})
	if err != nil {
		writes.Close()
		return err
	}
	if s.reads, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		writes.Close()
		return err
	}
	s.writer = &writer{pool: writes, stored: s.identity.stored}
	return nil
}

// enter lets a call in, and bounds it.
func (s *Store) enter(ctx context.Context, within time.Duration) (context.Context, func(), error) {
	if err := s.gate.Enter(); err != nil {
		return ctx, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	return ctx, func() { cancel(); s.gate.Leave() }, nil
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := s.gate.Enter(); err != nil {
		return eventstore.Appended{}, err
	}
	defer s.gate.Leave()
	return s.appends.Append(ctx, b)
}

// store settles the calls of a group, except for those that must be tried again.
func (s *Store) store(group []*adapter.Call) (again []*adapter.Call) {
	fail := func(calls []*adapter.Call, err error) {
		for _, c := range calls {
			c.Settle(eventstore.Appended{}, fmt.Errorf("append to the store of %s: %w", s.aggregate.Name, err))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.options.answerWithin)
	defer cancel()

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
				c.Settle(eventstore.Appended{Position: positions[i]}, nil)
			}
			break
		}
		chosen, undecided = part(chosen, undecided, lost)
	}

	refusals, err := s.writer.refusals(ctx, undecided)
	if err != nil {
		fail(undecided, err)
		return nil
	}
	for i, c := range undecided {
		if refusals[i] != nil {
			c.Settle(eventstore.Appended{}, refusals[i])
		} else {
			again = append(again, c)
		}
	}
	return again
}

// choose takes calls that do not touch the same streams or keys; of those that do, the first.
func choose(group []*adapter.Call) (chosen, clashing []*adapter.Call) {
	streams, keys := map[string]struct{}{}, map[string]struct{}{}
next:
	for _, c := range group {
		if _, taken := keys[c.Batch.Answer.Key]; taken {
			clashing = append(clashing, c)
			continue
		}
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

// part moves those who lost from chosen to undecided.
func part(chosen, undecided []*adapter.Call, lost map[int]bool) (left, both []*adapter.Call) {
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
	if !s.gate.Close() {
		return nil
	}
	s.appends.Stop()
	s.writer.pool.Close()
	s.reads.Close()
	return nil
}

// missing reports whether err says that there is no such row.
func missing(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
