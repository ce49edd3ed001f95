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
// that has lost part of it. A restored backup, a replica that was behind when it took over, and
// another database at the same address all answer like the server that failed. Appending there
// would start a second history beside the one in Kafka.
type identity struct {
	schema    string
	aggregate event.Aggregate

	// mu protects the fields below. Both pools check connections, and the writer updates newest.
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

// load reads the present epoch and newest event when the store is opened.
func (i *identity) load(ctx context.Context, conn querier) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := conn.QueryRow(ctx, selectIdentity).Scan(&i.epoch); err != nil {
		return fmt.Errorf("read the epoch: %w", err)
	}
	err := conn.QueryRow(ctx, selectNewest).Scan(&i.newest.Transaction, &i.newest.Sequence, &i.id)
	if err != nil && !noRows(err) {
		return fmt.Errorf("read the newest event: %w", err)
	}
	return nil
}

// committed records an event that the server has committed. A server that has this event has every
// earlier one of this process, too.
func (i *identity) committed(at event.Position, id [16]byte) {
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
		return fmt.Errorf("%w: the epoch of the store of %s in schema %s changed from %s to %s: %s",
			eventstore.ErrReplaced, i.aggregate.Name, i.schema, epoch, now, i.remedy())
	}
	// An empty store has nothing to lose.
	if newest.IsZero() {
		return nil
	}
	// One event suffices: a server that has it has all earlier ones.
	var has bool
	if err := conn.QueryRow(ctx, selectHas, newest.Transaction, bigint(newest.Sequence), id).Scan(&has); err != nil {
		return fmt.Errorf("look up the newest event of the store of %s: %w", i.aggregate.Name, err)
	}
	if !has {
		return fmt.Errorf("%w: the store of %s in schema %s lost the committed event at position %s: %s",
			eventstore.ErrReplaced, i.aggregate.Name, i.schema, newest, i.remedy())
	}
	return nil
}

// remedy returns what an operator can do about a replaced server.
func (i *identity) remedy() string {
	return "the server was restored from a backup, failed over to a replica that was behind, " +
		"or is a different server. Reads and appends fail until the newest store is back. " +
		"To continue with this one, stop Millrace and run `millrace rebuild --service " + i.aggregate.Service + "`"
}

// checkConnection checks a new connection before the pool uses it. It logs a rejection once, not
// for every attempt.
func (s *Store) checkConnection(ctx context.Context, conn *pgx.Conn) error {
	// The pool continues to connect after its caller has given up, so ctx may have no deadline.
	ctx, cancel := context.WithTimeout(ctx, s.options.queryTimeout)
	defer cancel()
	err := s.identity.check(ctx, conn)
	s.identity.mu.Lock()
	defer s.identity.mu.Unlock()
	switch {
	case err == nil:
		if s.identity.refused != "" {
			s.options.logger.Info("event store: history is complete again", "aggregate", s.aggregate.Name)
		}
		s.identity.refused = ""
	case err.Error() != s.identity.refused:
		s.identity.refused = err.Error()
		s.options.logger.Error("event store: connection rejected", "aggregate", s.aggregate.Name, "error", err)
	}
	return err
}
