package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"strings"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	libdriver "github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// StoreConfig configures a Store.
type StoreConfig struct {
	Server
	// Cluster is the name of the server's cluster, whose replicas hold the same tables. Empty means
	// a single server.
	Cluster string
	// Timeout bounds a call whose context has no deadline. 0 means 2 minutes.
	Timeout time.Duration
}

// Store creates, fills and queries tables on an external server or on the embedded engine. It is
// safe for concurrent use.
//
// Each call has a deadline, and ends sooner if the server answers no ping either. Errors of the
// server are an *Error. See Retryable and IsSchema for the distinctions that callers make.
type Store struct {
	client  *Client // for inserts and pings
	conn    driver.Conn
	local   bool // the server is on this machine
	cluster string
	timeout time.Duration
}

// Limits of a Store.
const (
	storeTimeout     = 2 * time.Minute
	storeConnections = 16               // concurrent statements other than inserts; more wait
	connectTimeout   = 15 * time.Second // for a connection, including the wait for a free one
)

// OpenStore returns a Store. It does not connect yet, so the server may be unreachable: see Ping.
func OpenStore(c StoreConfig) (*Store, error) {
	client, err := NewServerClient(c.Server)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(client.url)
	if err != nil {
		return nil, err
	}
	if c.Cluster != "" && !plainName.MatchString(c.Cluster) {
		return nil, fmt.Errorf("ClickHouse: the name of the cluster, %q, contains other characters than "+
			"letters, digits and underscores", c.Cluster)
	}
	if c.Timeout == 0 {
		c.Timeout = storeTimeout
	}
	o := &driver.Options{
		Protocol: driver.HTTP,
		Addr:     []string{u.Host},
		Auth:     driver.Auth{Username: client.user, Password: client.password},
		// Compression costs more than it saves on loopback.
		Compression:  &driver.Compression{Method: driver.CompressionNone},
		MaxOpenConns: storeConnections, MaxIdleConns: storeConnections, ConnMaxLifetime: time.Minute,
		DialTimeout: connectTimeout,
		ReadTimeout: 24 * time.Hour, // until the first byte of an answer; deadlines and pings bound it
		ClientInfo:  driver.ClientInfo{Products: []struct{ Name, Version string }{{"millrace", ""}}},
	}
	local := loopback(u.Hostname())
	if !local {
		o.Compression.Method = driver.CompressionLZ4
	}
	if u.Scheme == "https" {
		o.TLS = c.TLS
		if o.TLS == nil {
			o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	conn, err := driver.Open(o)
	if err != nil {
		return nil, fmt.Errorf("ClickHouse: %w", err)
	}
	return &Store{client: client, conn: conn, local: local, cluster: c.Cluster, timeout: c.Timeout}, nil
}

// loopback reports whether a host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close closes the connections.
func (s *Store) Close() error {
	return errors.Join(s.conn.Close(), s.client.Close())
}

// Ping returns nil when the server answers.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.client.Ping(ctx)
}

// OnCluster returns the clause for DDL statements that Exec runs: empty for a single server.
func (s *Store) OnCluster() string {
	return onCluster(s.cluster)
}

// bound returns a context with a deadline.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.timeout)
}

// Exec runs a statement and discards its answer. Args replace ? in the statement.
func (s *Store) Exec(ctx context.Context, sql string, args ...any) error {
	// The driver's own Exec does not notice an error after the start of the answer.
	rows, err := s.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
	}
	return errors.Join(rows.Err(), rows.Close())
}

// Rows is the answer to a query.
type Rows struct {
	rows     libdriver.Rows
	ctx      context.Context // the watch's
	progress func()
	stop     func()
	ended    bool
}

// Query runs a statement and returns its rows, which the caller must close. Args replace ? in the
// statement.
func (s *Store) Query(ctx context.Context, sql string, args ...any) (*Rows, error) {
	ctx, cancel := s.bound(ctx)
	ctx, progress, unwatch := s.client.watch(ctx)
	stop := func() { unwatch(); cancel() }
	rows, err := s.conn.Query(driver.Context(ctx, driver.WithSettings(s.settings(ctx))), sql, args...)
	if err != nil {
		err = driverError(ctx, err)
		stop()
		return nil, err
	}
	return &Rows{rows: rows, ctx: ctx, progress: progress, stop: stop}, nil
}

// settings returns the settings of a statement. The server ends it at the deadline, too.
func (s *Store) settings(ctx context.Context) driver.Settings {
	deadline, _ := ctx.Deadline()
	seconds := math.Ceil(max(time.Until(deadline).Seconds(), 1))
	return driver.Settings{"max_execution_time": int(seconds)}
}

// Next moves to the next row. It returns false at the end and after an error; see Err.
func (r *Rows) Next() bool {
	r.progress()
	r.ended = !r.rows.Next()
	return !r.ended
}

// Scan copies the columns of the current row into the values that dest points to.
func (r *Rows) Scan(dest ...any) error { return r.rows.Scan(dest...) }

// Columns returns the names of the columns.
func (r *Rows) Columns() []string { return r.rows.Columns() }

// Err returns the error that ended the rows, or nil.
func (r *Rows) Err() error { return driverError(r.ctx, r.rows.Err()) }

// Close ends the query if it still runs. It may be called more than once.
func (r *Rows) Close() error {
	if !r.ended {
		r.stop() // first, because the driver reads an answer to its end
		_ = r.rows.Close()
		return nil
	}
	err := driverError(r.ctx, r.rows.Close())
	r.stop()
	return err
}

// driverError returns an error of the driver in the terms of this package.
func driverError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if e := (*proto.Exception)(nil); errors.As(err, &e) {
		return &Error{Code: int(e.Code), Name: e.CodeName, Message: cutName(e.Message, e.CodeName)}
	}
	// Network errors and unexpected ends of answers; a mistake of the caller is neither.
	var network net.Error
	var status *driver.HTTPError
	switch {
	case context.Cause(ctx) != nil, errors.As(err, &network), errors.As(err, &status), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, driver.ErrAcquireConnTimeout):
		return fmt.Errorf("query ClickHouse: %w", unreachable(ctx, err))
	}
	return fmt.Errorf("query ClickHouse: %w", err)
}

// cutName removes the name of the code from a message, and what follows it: of an error in the middle
// of an answer, the driver repeats a part.
func cutName(message, name string) string {
	if name != "" {
		message, _, _ = strings.Cut(message, " ("+name+")")
	}
	return strings.TrimSpace(message)
}
