// Package kafka is the log of the embedded default: a broker in this process that speaks Kafka's
// wire protocol on loopback and keeps its log on disk, so that Millrace needs no Kafka to be tried,
// and the code that runs is the one that runs against a cluster.
//
// The broker is franz-go's kfake, which serves transactions, read_committed, fencing, consumer
// groups and compaction, but was written for tests. This package adds what a log that people keep
// needs: one owner of the directory, no retention unless asked for, and a repair of what a kill
// leaves behind.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/gofrs/flock"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"
)

// Config says where the broker keeps its log and where it listens.
type Config struct {
	// DataDir is created if it is not there. One broker at a time.
	DataDir string
	// Addr to listen on, a loopback address. Empty or port 0 takes a free port.
	Addr string
	// SyncWrites makes every write durable against a power cut before it is acknowledged. Without
	// it a write survives the end of the process, however violent, but a power cut can take the
	// log's last seconds, which sinks may have read already. It costs some 20 syncs per
	// transaction, one after the other: 10 ms on a good disk, 200 ms on a laptop that means it. The
	// stores of events sync theirs, so the log and all that is made of it can be made again.
	SyncWrites bool
	// Logger is slog.Default() where nil.
	Logger *slog.Logger
}

// ErrInUse says that another process, or another Broker of this one, has the data directory.
var ErrInUse = errors.New("is in use by another process")

// Broker is a running broker.
type Broker struct {
	addr    string
	boot    string
	cluster *kfake.Cluster
	lock    *flock.Flock
	dir     string
	log     *slog.Logger
	topics  *topicsKeeper
	close   sync.Once
	err     error
}

// brokerConfigs are the settings that differ from kfake's defaults. A log that forgets is not a
// source for a rebuild.
var brokerConfigs = map[string]string{
	"log.retention.ms":               "-1",
	"log.retention.bytes":            "-1",
	"offsets.retention.minutes":      "5256000",      // 10 years: a sink that was off for a while continues where it stood
	"transactional.id.expiration.ms": "2147483647",   // the longest there is, 24 days
	"log.cleaner.backoff.ms":         "315360000000", // 10 years: compaction runs at the start, see compact
}

// Start opens the log in cfg.DataDir, repairs it if the last owner was killed, and serves it until
// Close. ctx bounds only the start.
func Start(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.DataDir == "" {
		return nil, errors.New("embedded kafka: no data directory given")
	}
	if err := os.MkdirAll(cfg.DataDir, 0o750); err != nil {
		return nil, fmt.Errorf("embedded kafka: create the data directory: %w", err)
	}
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: %w", err)
	}
	b, err := start(ctx, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded kafka: %w", err), lock.Unlock())
	}
	b.lock = lock
	return b, nil
}

func start(ctx context.Context, cfg Config) (*Broker, error) {
	if err := awaitRoom(ctx, cfg.DataDir, cfg.Logger); err != nil {
		return nil, err
	}
	if err := check(cfg.DataDir, cfg.Logger); err != nil {
		return nil, err
	}
	if err := repair(cfg.DataDir, cfg.Logger); err != nil {
		return nil, fmt.Errorf("repair the log in %s: %w", cfg.DataDir, err)
	}
	tcp, err := listen(ctx, cfg.Addr)
	if err != nil {
		return nil, err
	}
	topics := &topicsKeeper{dir: cfg.DataDir, log: cfg.Logger}
	ln := &gate{Listener: tcp, log: cfg.Logger, topics: topics, open: make(chan struct{}), closed: make(chan struct{})}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("millrace"),
		kfake.DataDir(cfg.DataDir),
		kfake.BrokerConfigs(brokerConfigs),
		kfake.WithLogger(&logger{cfg.Logger.With("part", "kafka")}),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
	}
	if cfg.SyncWrites {
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log in %s: %w", cfg.DataDir, err), ignoreClosed(ln.Close()))
	}
	if err := errors.Join(dropSnapshots(cfg.DataDir), compact(cfg.DataDir, cluster)); err != nil {
		cluster.Close()
		return nil, fmt.Errorf("prepare the log in %s: %w", cfg.DataDir, err)
	}
	topics.keep()
	debug.FreeOSMemory() // kfake reads the log through memory once, as much as it is large
	close(ln.open)
	return &Broker{addr: ln.Addr().String(), boot: uuid.NewString(), cluster: cluster, dir: cfg.DataDir, log: cfg.Logger, topics: topics}, nil
}

// check finds what is damaged in a log that no broker has open, and mends what can be mended. It
// returns a *DamageError for what cannot: the start fails then, since kfake would continue without
// the records concerned.
func check(dir string, log *slog.Logger) error {
	last, err := readStop(dir, log)
	if err != nil {
		return err
	}
	if err := undoCompaction(dir); err != nil {
		return fmt.Errorf("undo an interrupted compaction in %s: %w", dir, err)
	}
	if err := checkSettings(dir, last, log); err != nil {
		return err
	}
	if err := errors.Join(last.checkLeft(dir), last.checkLogs(dir, log), checkSegments(dir, last != nil, log)); err != nil {
		return err
	}
	if err := checkStamp(dir, log); err != nil {
		return err
	}
	return errors.Join(
		remove(filepath.Join(dir, stopFile)), // it says nothing about what is written from now on
		renewStamp(dir),
	)
}

// Addr returns the host:port that clients connect to.
func (b *Broker) Addr() string { return b.addr }

// Boot names this run of the broker; no other run has the same. A transactional id has to end in
// it. What was open when the broker was killed counts as aborted from then on, but no marker on the
// log says so, and readers would take a later transaction under the same id for its continuation.
func (b *Broker) Boot() string { return b.boot }

// Close ends all connections, brings the log to disk and releases the directory. Clients should be
// closed before.
func (b *Broker) Close() error {
	b.close.Do(func() {
		b.cluster.Close()
		b.topics.keep()
		if err := errors.Join(renewStamp(b.dir), writeStop(b.dir)); err != nil {
			b.log.Warn("kafka: the next start checks the log as after a kill", "error", err)
		}
		b.err = b.lock.Unlock()
	})
	return b.err
}

// lockDir takes the lock that makes this process the one owner of dir. The kernel releases it
// however the process ends.
func lockDir(dir string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(dir, "lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
	}
	if !ok {
		return nil, fmt.Errorf("the data directory %s %w: stop that one, or give this one another directory", dir, ErrInUse)
	}
	return lock, nil
}

// listen refuses anything but loopback: the broker asks nobody who they are.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if host, ok := ln.Addr().(*net.TCPAddr); !ok || !host.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("listen on %s: not a loopback address, and the embedded broker has no access control", addr), ln.Close())
	}
	return ln, nil
}

// gate lets clients wait until it is opened, and looks at what they send.
type gate struct {
	net.Listener
	log          *slog.Logger
	topics       *topicsKeeper
	open, closed chan struct{}
	once         sync.Once
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case <-g.open:
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		return &frames{Conn: conn, log: g.log, changed: g.topics.keep}, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Listener.Close()
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
