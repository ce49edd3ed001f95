package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/commands/eventstore"
)

// holdPoll is how often a process that waits in Hold tries again.
const holdPoll = 250 * time.Millisecond

// Hold blocks until no other process holds name in this store. Then it holds it until release is
// called or the process ends. The lock is an advisory lock of a connection, so a server that restarts
// or fails over forgets it, and the holder does not notice. Use it to avoid contention between
// processes that are safe without it.
func (s *Store) Hold(ctx context.Context, name string) (release func(), err error) {
	if err := s.inFlight.Enter(); err != nil {
		return nil, err
	}
	defer s.inFlight.Leave()
	conn, err := s.connectHolder(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold %s of %s: %w", name, s.aggregate.Name, err)
	}
	release = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.options.queryTimeout)
		defer cancel()
		_ = conn.Close(ctx) // the server releases the lock when the connection ends, however it ends
	}
	poll := time.NewTicker(holdPoll)
	defer poll.Stop()
	for {
		held, err := s.tryHold(ctx, conn, name)
		switch {
		case err != nil:
			release()
			return nil, fmt.Errorf("hold %s of %s: %w", name, s.aggregate.Name, err)
		case held:
			return release, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			release()
			return nil, ctx.Err()
		case <-s.inFlight.Closing():
			release()
			return nil, eventstore.ErrClosed
		}
	}
}

// connectHolder opens a connection for one lock. The server notices within half a minute if the
// machine at the other end has gone.
func (s *Store) connectHolder(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.queryTimeout)
	defer cancel()
	config := s.reads.Config().ConnConfig
	for parameter, value := range map[string]string{
		"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
	} {
		config.RuntimeParams[parameter] = value
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := s.checkConnection(ctx, conn); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// tryHold takes the lock unless another connection has it. Advisory locks are of a database, so the
// schema is in the name. It does not wait in the server: a statement that waits holds a snapshot, and
// the server could not remove dead rows meanwhile.
func (s *Store) tryHold(ctx context.Context, conn *pgx.Conn, name string) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.queryTimeout)
	defer cancel()
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))",
		"millrace "+s.options.schema+" "+name).Scan(&held)
	return held, err
}
