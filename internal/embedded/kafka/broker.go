// Package kafka is the embedded broker: it runs in this process, speaks Kafka's wire protocol on
// loopback and keeps its log on disk. With it, Millrace can be tried without a Kafka cluster, and
// the code is the same as with one.
//
// Start checks and repairs the log, and then serves it. Broker is the running broker. The broker
// itself is franz-go's kfake, which supports transactions, read_committed, fencing, consumer groups
// and compaction, but was written for tests. This package adds what a permanent log needs:
//
//   - One owner per directory, and no retention unless a topic requests it.
//   - Damage is found before kfake reads the log. segments.go checks records, settings.go and
//     topics.go the JSON files, and stop.go detects changes that were made while no broker ran. If
//     damaged data cannot be restored, Start fails with a DamageError that names the remedy.
//   - repair.go removes what a kill leaves behind, compact.go makes compaction safe against kills,
//     and stamp.go notices a folder that was restored from a backup.
//   - frames.go bounds the size of requests, and diskspace.go waits for space on the disk.
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

// Config configures a Broker.
type Config struct {
	// DataDir is created if it does not exist. One broker at a time can use it.
	DataDir string
	// Addr is the loopback address to listen on. Empty or port 0 takes a free port.
	Addr string
	// SyncWrites makes every write durable against a power cut before it is acknowledged. Without
	// it, a write survives any end of the process. But a power cut may lose the last seconds of the
	// log, which sinks may have read already. It costs about 20 consecutive syncs per transaction:
	// 10 ms on a good disk, and 200 ms on a laptop whose disk really syncs. The event stores sync
	// their writes, so the log and everything derived from it can be rebuilt.
	SyncWrites bool
	// Logger is the logger. Nil means slog.Default().
	Logger *slog.Logger
}

// ErrInUse means that another process, or another Broker of this process, uses the data directory.
var ErrInUse = errors.New("is in use by another process")

// Broker is a running broker.
type Broker struct {
	addr    string
	boot    string // see Boot
	cluster *kfake.Cluster
	lock    *flock.Flock // of the directory
	dir     string
	log     *slog.Logger
	topics  *topicsCopier
	close   sync.Once
	err     error // result of Close
}

// brokerConfigs are the settings that differ from kfake's defaults. Retention is off, because views
// and tables are rebuilt from the log.
var brokerConfigs = map[string]string{
	"log.retention.ms":               "-1",
	"log.retention.bytes":            "-1",
	"offsets.retention.minutes":      "5256000",      // 10 years: a sink that was off for a while resumes
	"transactional.id.expiration.ms": "2147483647",   // 24 days, the maximum
	"log.cleaner.backoff.ms":         "315360000000", // 10 years: compaction runs at start, see compact
}

// Start opens the log in cfg.DataDir, repairs it if the last owner was killed, and serves it until
// Close. ctx bounds the start only.
func Start(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.DataDir == "" {
		return nil, errors.New("embedded kafka: DataDir is missing: set a directory for the log")
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

// start does the work of Start. The caller holds the lock of the directory.
func start(ctx context.Context, cfg Config) (*Broker, error) {
	// The order is important: space to write, then checks, then repairs, and only then kfake.
	if err := awaitDiskSpace(ctx, cfg.DataDir, cfg.Logger); err != nil {
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
	// The copy of the list of topics is updated before clients get responses; see frames.
	topics := &topicsCopier{dir: cfg.DataDir, log: cfg.Logger}
	// kfake accepts connections as soon as it is created. The listener holds them back until the
	// log is prepared.
	ln := &pausedListener{
		Listener: tcp, log: cfg.Logger, topics: topics, open: make(chan struct{}), closed: make(chan struct{}),
	}
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
	// This loads the log. Partitions without a snapshot are replayed.
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log in %s: %w", cfg.DataDir, err), ignoreClosed(ln.Close()))
	}
	if err := errors.Join(dropSnapshots(cfg.DataDir), compact(cfg.DataDir, cluster)); err != nil {
		cluster.Close()
		return nil, fmt.Errorf("prepare the log in %s: %w", cfg.DataDir, err)
	}
	topics.update()
	debug.FreeOSMemory() // loading the log needed as much memory as the log is large
	// Only now may clients connect.
	close(ln.open)
	return &Broker{
		addr: ln.Addr().String(), boot: uuid.NewString(), cluster: cluster, dir: cfg.DataDir, log: cfg.Logger,
		topics: topics,
	}, nil
}

// check looks for damage in a log that no broker has open, and repairs what can be repaired. It
// returns a *DamageError for the rest. Then the start fails, because kfake would continue without
// the damaged records.
func check(dir string, log *slog.Logger) error {
	// last is nil after a kill. Then less is known, and the checks allow for an interrupted write.
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
	err = errors.Join(last.checkFiles(dir), last.checkLogs(dir, log), checkSegments(dir, last != nil, log))
	if err != nil {
		return err
	}
	if err := checkStamp(dir, log); err != nil {
		return err
	}
	return errors.Join(
		remove(filepath.Join(dir, stopFile)), // it does not describe what is written from now on
		renewStamp(dir),
	)
}

// Addr returns the host:port that clients connect to.
func (b *Broker) Addr() string { return b.addr }

// Boot returns an id of this run of the broker. Transactional ids must end with it. Transactions
// that were open when the broker was killed count as aborted, but they have no marker on the log.
// Readers would take a later transaction with the same id for their continuation.
func (b *Broker) Boot() string { return b.boot }

// Close ends all connections, writes the log to disk and releases the directory. Close clients
// before.
func (b *Broker) Close() error {
	b.close.Do(func() {
		b.cluster.Close()
		// kfake has written its last files, so their description for the next start is complete.
		b.topics.update()
		if err := errors.Join(renewStamp(b.dir), writeStop(b.dir)); err != nil {
			b.log.Warn("embedded kafka: clean stop not recorded; the next start checks the log as after a kill",
				"error", err)
		}
		b.err = b.lock.Unlock()
	})
	return b.err
}

// lockDir locks dir for this process. The kernel releases the lock when the process ends, even if
// it is killed.
func lockDir(dir string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(dir, "lock"))
	// Do not wait: a second process would seem to hang.
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
	}
	if !ok {
		return nil, fmt.Errorf("the data directory %s %w: stop that process, or set another directory", dir, ErrInUse)
	}
	return lock, nil
}

// listen accepts loopback addresses only, because the broker has no authentication.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if host, ok := ln.Addr().(*net.TCPAddr); !ok || !host.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("listen on %s: not a loopback address, which is required because "+
			"the embedded broker has no access control", addr), ln.Close())
	}
	return ln, nil
}

// pausedListener blocks clients until open is closed, and then inspects their requests.
type pausedListener struct {
	net.Listener
	log          *slog.Logger
	topics       *topicsCopier
	open, closed chan struct{}
	once         sync.Once
}

// Accept implements net.Listener.
func (l *pausedListener) Accept() (net.Conn, error) {
	select {
	case <-l.open:
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		return newFrames(conn, l.log, l.topics.update), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It also ends an Accept that is blocked.
func (l *pausedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// ignoreClosed returns err, unless a listener was closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
