package postgres

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// identity is what a Store remembers of its history, so that it can refuse connections to a server
// that lost part of it. A restored backup, a replica that was behind when it took over, and another
// database at the same address all answer like the server that failed. Appending there would start
// a second history beside the one in Kafka.
type identity struct {
	schema    string
	aggregate event.Aggregate

	// mu protects the fields below.
	mu      sync.Mutex
	epoch   string         // the part of Epoch that is stored in the tables; a failover does not change it
	newest  event.Position // position of the last event that this process knows to be committed
	id      [16]byte       // id of that event
	refused string         // reason that was last logged; empty if the last connection was accepted
}

const (
	selectIdentity = `SELECT epoch::text FROM store`
	selectNewest   = `SELECT transaction, position, id FROM events ORDER BY transaction DESC, position DESC LIMIT 1`
	selectHas      = `SELECT EXISTS (SELECT FROM events WHERE transaction = $1 AND position = $2 AND id = $3)`
)

// learn reads the history at the time when the store is opened.
func (i *identity) learn(ctx context.Context, conn querier) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := conn.QueryRow(ctx, selectIdentity).Scan(&i.epoch); err != nil {
		return fmt.Errorf("read the epoch: %w", err)
	}
	err := conn.QueryRow(ctx, selectNewest).Scan(&i.newest.Transaction, &i.newest.Sequence, &i.id)
	if err != nil && !missing(err) {
		return fmt.Errorf("read the newest event: %w", err)
	}
	return nil
}

// stored records an event that the server has committed. A server that has this event has every
// earlier one of this process, too.
func (i *identity) stored(at event.Position, id [16]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if at.Compare(i.newest) > 0 {
		i.newest, i.id = at, id
	}
}

// check returns an error that wraps eventstore.ErrReplaced if the server of a connection lacks the
// remembered history.
func (i *identity) check(ctx context.Context, conn querier) error {
	i.mu.Lock()
	epoch, newest, id := i.epoch, i.newest, i.id
	i.mu.Unlock()
	if epoch == "" { // the store is being opened
		return nil
	}
	var now string
	if err := conn.QueryRow(ctx, selectIdentity).Scan(&now); err != nil {
		return fmt.Errorf("read the epoch of the store of %s: %w", i.aggregate.Name, err)
	}
	if now != epoch {
		return fmt.Errorf("%w: the store of %s in schema %s had the epoch %s and has %s: %s",
			eventstore.ErrReplaced, i.aggregate.Name, i.schema, epoch, now, i.remedy())
	}
	// An empty store has nothing to lose.
	if newest.IsZero() {
		return nil
	}
	// One event suffices: a server that has it has all earlier ones.
	var has bool
	if err := conn.QueryRow(ctx, selectHas, newest.Transaction, bigint(newest.Sequence), id).Scan(&has); err != nil {
		return fmt.Errorf("look for the newest event of the store of %s: %w", i.aggregate.Name, err)
	}
	if !has {
		return fmt.Errorf("%w: the store of %s in schema %s lost the event at position %s, which was committed: %s",
			eventstore.ErrReplaced, i.aggregate.Name, i.schema, newest, i.remedy())
	}
	return nil
}

// remedy returns what an operator can do about a replaced server.
func (i *identity) remedy() string {
	return "the server was restored from a backup, failed over to a replica that was behind, or is another one. Nothing is stored until the " +
		"newest store is back. To continue with what this one has, stop Millrace and run `millrace rebuild --service " + i.aggregate.Service + "`"
}

// connected checks a new connection before the pool uses it. It logs a refusal once, not for every
// attempt.
func (s *Store) connected(ctx context.Context, conn *pgx.Conn) error {
	// The pool continues to connect after its caller has given up.
	ctx, cancel := context.WithTimeout(ctx, s.options.answerWithin)
	defer cancel()
	err := s.identity.check(ctx, conn)
	s.identity.mu.Lock()
	defer s.identity.mu.Unlock()
	switch {
	case err == nil:
		if s.identity.refused != "" {
			s.options.logger.Info("event store: the history is complete again", "aggregate", s.aggregate.Name)
		}
		s.identity.refused = ""
	case err.Error() != s.identity.refused:
		s.identity.refused = err.Error()
		s.options.logger.Error("event store: connection refused", "aggregate", s.aggregate.Name, "error", err)
	}
	return err
}
