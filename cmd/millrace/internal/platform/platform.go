// Package platform starts the parts of Millrace in one process and wires them together: embedded servers where the
// configuration names no real ones, then stores, relays, views, landers, the SQL engine and the door to them all.
package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/gofrs/flock"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

// Platform is a running system.
type Platform struct {
	cfg      config.Config
	log      *slog.Logger
	listener net.Listener

	kafka  kafka.Config
	admin  *kafka.Admin
	boot   string                      // ends the transactional ids; see embedded kafka
	stores map[string]eventstore.Store // by aggregate
	relays map[string]*relay.Relay     // by aggregate
	redis  *redis.Client
	orders *orderstatus.View
	goods  *catalog.View
	views  []view
	lake   *lake.Lake
	sql    *lakesql.SQL

	addresses map[string]string // of the servers, for people
	stops     []func() error    // undo what was started, last first
	ready     atomic.Bool
	failOnce  sync.Once
	failed    chan struct{}
	failure   error
}

// Start starts everything. When it returns without an error commands are taken; /readyz tells when queries answer in full.
// ctx bounds the start only: end the system with Close.
func Start(ctx context.Context, cfg config.Config, log *slog.Logger) (*Platform, error) {
	p := &Platform{
		cfg: cfg, log: log, failed: make(chan struct{}), addresses: map[string]string{},
		stores: map[string]eventstore.Store{}, relays: map[string]*relay.Relay{},
	}
	for _, step := range []struct {
		name  string
		start func(context.Context) error
	}{
		{"data folder", p.startFolder},
		{"address", p.startListener}, // early: a taken port should not cost the start of all the rest
		{"event stores", p.startStores},
		{"kafka", p.startKafka},
		{"redis", p.startRedis},
		{"lake", p.startLake},
		{"sql engine", p.startEngine},
		{"views", p.startViews},
		{"relays", p.startRelays},
		{"server", p.startServer},
	} {
		if err := step.start(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", step.name, err), p.Close())
		}
	}
	return p, nil
}

// Addr is the HOST:PORT of the door.
func (p *Platform) Addr() string { return p.listener.Addr().String() }

// Failed is closed when a part that the system cannot do without has ended; Close then says why.
func (p *Platform) Failed() <-chan struct{} { return p.failed }

// Close stops everything in the reverse order of the start: the door first, the stores last. It returns what made the
// system fail, if anything did, and what went wrong in stopping.
func (p *Platform) Close() error {
	p.ready.Store(false)
	var errs []error
	for i := len(p.stops) - 1; i >= 0; i-- {
		errs = append(errs, p.stops[i]())
	}
	p.stops = nil
	return errors.Join(append([]error{p.failure}, errs...)...)
}

// onStop adds what undoes a step of the start.
func (p *Platform) onStop(stop func() error) { p.stops = append(p.stops, stop) }

// background runs a part until the system stops. A part that ends before, with or without an error, fails the system.
func (p *Platform) background(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("it ended by itself")
			}
			p.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	p.onStop(func() error {
		cancel()
		<-done
		return nil
	})
}

func (p *Platform) fail(err error) {
	p.failOnce.Do(func() {
		p.log.Error("a part of the system failed; stopping", "error", err)
		p.failure = err
		close(p.failed)
	})
}

// startFolder takes the data folder for this process. The kernel lets go of the lock however the process ends.
func (p *Platform) startFolder(context.Context) error {
	if err := os.MkdirAll(p.cfg.Data, 0o750); err != nil {
		return err
	}
	lock := flock.New(p.cfg.Path("lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s is in use by another running millrace: stop that one, or name another folder with --data", p.cfg.Data)
	}
	p.onStop(lock.Unlock)
	return nil
}

func (p *Platform) startListener(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.cfg.Addr)
	if err != nil {
		return fmt.Errorf("%w (is another millrace running? name another address with --addr)", err)
	}
	p.listener = l
	p.addresses["millrace"] = l.Addr().String()
	p.onStop(func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) { // the server has closed it already
			return err
		}
		return nil
	})
	return nil
}

// topics are the aggregates' topics.
func topics() []string {
	var names []string
	for _, a := range event.Aggregates() {
		names = append(names, a.Topic)
	}
	return names
}
