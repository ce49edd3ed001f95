package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/readmodels/versions"
	"github.com/millrace/millrace/streams"
)

const (
	// How often a process looks at the record of a view's versions.
	versionsEvery = time.Second
	// A switch to another version waits this long for queries in progress, and then for what the log
	// has. Queries that arrive meanwhile wait, too.
	switchDrain   = 500 * time.Millisecond
	switchCatchUp = 3 * time.Second
)

// view is a view with its versions, as this process runs them. Queries are answered from the version
// that serves.
//
// One goroutine (run) follows the record of the versions: it feeds or follows each of them, and
// switches to another one after a swap. A process switches only when the new version has applied
// everything that was on the log after the last query of the old one had begun. So no query sees an
// older state than an earlier one, whatever the two saw.
type view struct {
	View
	app      *App
	registry *versions.Registry // nil: the view has one version only
	started  bool
	feeds    bool // this process feeds the versions; otherwise it follows them
	options  []connect.HandlerOption
	changed  chan struct{} // makes run look at the record at once
	owner    string        // names this process in leases

	// mu protects the fields below.
	mu      sync.Mutex
	state   versions.State
	open    map[string]*version // by name
	serving *version
	held    chan struct{} // closed when queries may continue; nil while they are not held
	idle    chan struct{} // closed when no query of the old version is in progress; nil while nobody waits
}

// version is an open version of a view, with the goroutine that feeds or follows it.
type version struct {
	OpenView
	name    string // empty for the one that the view began with
	sink    string
	runner  runner
	cancel  context.CancelFunc // stops runner and work; nil until they run
	stopped sync.WaitGroup     // for runner and work
	stopJob func()             // stops work; nil while there is none
	handler func() http.Handler
	serves  atomic.Bool // queries of this process are answered from it
	filling atomic.Bool // a replay fills it, and it has not reached the end of the log
	queries int         // in progress; protected by view.mu
	speed   speed
}

// runner is a streams.Runtime, which feeds a version of a view, or a streams.Follower.
type runner interface {
	Run(context.Context) error
	CatchUp(context.Context) error
	Progress() []streams.TopicProgress
}

// openView opens a view in the versions that its record has.
func (p *App) openView(ctx context.Context, declared View) (*view, error) {
	v := &view{View: declared, app: p, state: versions.Initial(), open: map[string]*version{},
		changed: make(chan struct{}, 1), owner: uuid.NewString()}
	if declared.Versions != nil {
		store, err := declared.Versions(ctx, p.viewSinks)
		if err != nil {
			return nil, err
		}
		v.registry = &versions.Registry{Store: store, View: declared.Name}
		if v.state, err = v.registry.Load(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range v.state.Versions {
		if err := v.openVersion(ctx, s.Name); err != nil {
			return nil, err
		}
	}
	v.serving = v.open[v.state.Serving]
	v.serving.serves.Store(true)
	return v, nil
}

// openVersion opens a version in its sink.
func (v *view) openVersion(ctx context.Context, name string) error {
	sink := versions.Sink(v.Name, name)
	opened, err := v.Open(ctx, v.app.viewSinks, sink)
	if err != nil {
		return err
	}
	o := &version{OpenView: opened, name: name, sink: sink}
	o.handler = sync.OnceValue(func() http.Handler {
		_, h := opened.Handler(v.options...)
		return h
	})
	o.filling.Store(name != "") // until the record is looked at
	if v.started {
		v.attach(o)
	}
	v.mu.Lock()
	v.open[name] = o
	v.mu.Unlock()
	return nil
}

// versions returns the open versions, in the order of their creation.
func (v *view) versions() []*version {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]*version, 0, len(v.open))
	for _, s := range v.state.Versions {
		if o := v.open[s.Name]; o != nil {
			all = append(all, o)
		}
	}
	return all
}

// complete returns the versions that have once applied the whole log. They must have the same content
// as the store.
func (v *view) complete() []*version {
	state := v.current()
	return slices.DeleteFunc(v.versions(), func(o *version) bool {
		s, ok := state.Find(o.name)
		return !ok || s.Dropped || o.name != "" && s.Built.IsZero()
	})
}

// current returns the last known record.
func (v *view) current() versions.State {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

// now returns the version that serves in this process.
func (v *view) now() *version {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.serving
}

// versions returns the open versions of all views.
func (p *App) versions() (all []*version) {
	for _, v := range p.views {
		all = append(all, v.versions()...)
	}
	return all
}

// CatchUp blocks until the serving version has applied what was on the log when it was called.
func (v *view) CatchUp(ctx context.Context) error { return v.now().runner.CatchUp(ctx) }

// Handler serves the view's queries from the version that serves.
func (v *view) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	v.options = opts
	path, _ := v.now().Handler(opts...)
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := v.enter(r.Context())
		defer v.leave(s)
		s.handler().ServeHTTP(w, r)
	})
}

// enter returns the version that answers a query. It waits while the view switches. If ctx ends
// meanwhile, the query's handler reports that.
func (v *view) enter(ctx context.Context) *version {
	for {
		v.mu.Lock()
		held := v.held
		if held == nil || ctx.Err() != nil {
			s := v.serving
			s.queries++
			v.mu.Unlock()
			return s
		}
		v.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
}

// leave ends a query that enter began.
func (v *view) leave(s *version) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s.queries--
	v.announceIdle()
}

// announceIdle tells drain that no query is in progress. v.mu is held.
func (v *view) announceIdle() {
	if v.idle != nil && v.serving.queries == 0 {
		close(v.idle)
		v.idle = nil
	}
}

// start begins to feed or follow the versions, in the background.
func (v *view) start(feeds bool) {
	v.started, v.feeds = true, feeds
	for _, o := range v.versions() {
		v.attach(o)
	}
	v.app.background("view "+v.Name, v.run)
}

// attach gives a version its runner.
func (v *view) attach(o *version) {
	if p := v.app; v.feeds {
		r := o.Runtime(p.kafka, p.decoder, p.log)
		// Events of years ago would say nothing of the freshness of what queries show.
		p.measureRuntime("view "+o.sink, r, o.serves.Load)
		r.Trace(p.tracer)
		r.UseArchive(p.viewArchive)
		o.runner = r
	} else {
		o.runner = o.Follower(p.kafka, p.log)
	}
}

// run feeds or follows the versions until ctx ends. It returns the error of a version that ends by
// itself.
func (v *view) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	defer func() {
		cancel()
		for _, o := range v.versions() {
			o.stopped.Wait()
		}
	}()
	tick := time.NewTicker(versionsEvery)
	defer tick.Stop()
	for logged := ""; ; {
		err := v.follow(ctx, failed)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			logged = ""
		case err.Error() != logged: // log an error once, not every second
			logged = err.Error()
			v.app.log.Warn("view: following its versions failed; retrying", "view", v.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-v.changed:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// follow makes the versions of this process those of the record.
func (v *view) follow(ctx context.Context, failed chan<- error) error {
	errs := []error{v.load(ctx)}
	state := v.current()
	for _, s := range state.Versions {
		o := v.find(s.Name)
		if o == nil && !s.Dropped {
			if err := v.openVersion(ctx, s.Name); err != nil {
				errs = append(errs, err)
				continue
			}
			o = v.find(s.Name)
		}
		if o != nil && o.cancel == nil && !s.Dropped {
			if err := v.stamp(ctx, o); err != nil {
				errs = append(errs, err)
				continue
			}
			v.launch(ctx, o, failed)
		}
		if o != nil {
			v.regulate(o, s)
		}
	}
	if state.Serving != v.now().name {
		errs = append(errs, v.switchTo(ctx, v.find(state.Serving)))
	}
	v.work(ctx, failed)
	errs = append(errs, v.drop(ctx, state))
	return errors.Join(errs...)
}

// find returns an open version, or nil.
func (v *view) find(name string) *version {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.open[name]
}

// load reads the record. If the store has lost it, a process that feeds the view writes it again.
func (v *view) load(ctx context.Context) error {
	if v.registry == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	known := v.current()
	state, err := v.registry.Load(ctx)
	if err == nil && state.Revision >= known.Revision {
		v.mu.Lock()
		v.state = state
		v.mu.Unlock()
		return nil
	}
	if !v.feeds || known.Revision == 0 {
		return err
	}
	v.app.log.Warn("view: the record of its versions was lost; writing it again", "view", v.Name,
		"revision", known.Revision, "error", err)
	return v.registry.Restore(ctx, known)
}

// update changes the record, and makes run look at it at once.
func (v *view) update(ctx context.Context, change func(*versions.State) error) (versions.State, error) {
	state, err := v.registry.Update(ctx, change)
	if err == nil {
		select {
		case v.changed <- struct{}{}:
		default:
		}
	}
	return state, err
}

// stamp records the projection of this process for a version that it begins to fill, because it is
// empty.
func (v *view) stamp(ctx context.Context, o *version) error {
	sink, ok := o.OpenView.(streams.Sink)
	if !v.feeds || !ok || v.registry == nil {
		return nil
	}
	if s, _ := v.current().Find(o.name); s.Projection == v.Projection {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, f := range v.Feeds {
		if positions, err := sink.Positions(ctx, f.Aggregate.Topic); err != nil || len(positions) > 0 {
			return err
		}
	}
	_, err := v.update(ctx, func(s *versions.State) error {
		s.SetProjection(o.name, v.Projection)
		return nil
	})
	return err
}

// outdated returns the version that serves, if another projection has built it.
func (v *view) outdated() (s versions.Version, is bool) {
	s, _ = v.current().Find(v.now().name)
	return s, s.Projection != 0 && v.Projection != 0 && s.Projection != v.Projection
}

// launch runs what feeds or follows a version. A version that a replay has begun is recorded as built
// when it has applied everything that was on the log.
func (v *view) launch(ctx context.Context, o *version, failed chan<- error) {
	ctx, o.cancel = context.WithCancel(ctx)
	o.stopped.Go(func() {
		err := o.runner.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended unexpectedly")
		}
		select {
		case failed <- fmt.Errorf("%s: %w", o.sink, err):
		default:
		}
	})
	if s, _ := v.current().Find(o.name); !v.feeds || o.name == "" || !s.Built.IsZero() {
		return
	}
	o.stopped.Go(func() {
		for waits := backoff.Server.Start(); ; {
			err := o.runner.CatchUp(ctx)
			if err == nil {
				_, err = v.update(ctx, func(s *versions.State) error {
					s.SetBuilt(o.name, time.Now())
					return nil
				})
			}
			if err == nil || !backoff.Sleep(ctx, waits.Next()) {
				return
			}
		}
	})
}

// regulate limits the rate of a version that is being built, and measures it.
func (v *view) regulate(o *version, s versions.Version) {
	building := s.Name != "" && s.Built.IsZero() && s.Since.IsZero()
	o.filling.Store(building)
	if r, ok := o.runner.(*streams.Runtime); ok {
		rate := 0
		if building {
			rate = s.Rate
		}
		r.SetRate(rate)
	}
	if !building {
		return
	}
	if passed, _, known := o.progress(); known {
		o.speed.measure(time.Now(), passed)
	}
}

// progress returns how many records of the log a version has passed, and how many there are, counted
// from offset 0. known is false until it has read the ends of the topics.
func (o *version) progress() (passed, total uint64, known bool) {
	for _, t := range o.runner.Progress() {
		known = true
		for partition, end := range t.Ends {
			next := max(0, t.Next[partition])
			passed, total = passed+uint64(next), total+uint64(max(next, end))
		}
	}
	return passed, total, known
}

// switchTo makes another version serve in this process.
func (v *view) switchTo(ctx context.Context, next *version) error {
	if next == nil {
		return nil // it could not be opened; that error is reported
	}
	// Most of the wait is over before queries are held.
	catchUp := func() error {
		ctx, cancel := context.WithTimeout(ctx, switchCatchUp)
		defer cancel()
		return next.runner.CatchUp(ctx)
	}
	if err := catchUp(); err != nil {
		return fmt.Errorf("switch to %s: %w", next.sink, err)
	}
	held := make(chan struct{})
	v.mu.Lock()
	v.held = held
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.held = nil
		v.mu.Unlock()
		close(held)
	}()
	v.drain(ctx)
	// The old version has shown nothing that is behind the present end of the log.
	if err := catchUp(); err != nil {
		return fmt.Errorf("switch to %s: %w", next.sink, err)
	}
	v.mu.Lock()
	old := v.serving
	v.serving = next
	old.serves.Store(false)
	next.serves.Store(true)
	v.mu.Unlock()
	v.app.log.Info("view: queries are answered from another version", "view", v.Name, "before", old.sink, "now", next.sink)
	return nil
}

// drain waits for queries in progress, for switchDrain at most: one that waits for a token may take
// longer, and its answer then names the version of what it shows.
func (v *view) drain(ctx context.Context) {
	idle := make(chan struct{})
	v.mu.Lock()
	v.idle = idle
	v.announceIdle()
	v.mu.Unlock()
	wait := time.NewTimer(switchDrain)
	defer wait.Stop()
	select {
	case <-idle:
	case <-wait.C:
	case <-ctx.Done():
	}
	v.mu.Lock()
	v.idle = nil
	v.mu.Unlock()
}

// worker is an OpenView that has work besides being fed. It has effects outside of the view, so only
// the version that serves does it.
type worker interface {
	Work(context.Context, customer360.WorkConfig) error
}

// work starts the work of the serving version, and stops that of others.
func (v *view) work(ctx context.Context, failed chan<- error) {
	p, serving := v.app, v.now()
	for _, o := range v.versions() {
		if o != serving && o.stopJob != nil {
			o.stopJob()
			o.stopJob = nil
		}
	}
	w, ok := serving.OpenView.(worker)
	if !ok || serving.stopJob != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	serving.stopJob = func() {
		cancel()
		<-done
	}
	serving.stopped.Go(func() {
		defer close(done)
		defer cancel()
		err := w.Work(ctx, customer360.WorkConfig{
			Kafka: p.kafka, Decoder: p.decoder, Logger: p.log, Evaluate: v.feeds,
			TransactionalID: "millrace-segments" + p.boot, Owner: v.owner,
		})
		if ctx.Err() == nil {
			select {
			case failed <- fmt.Errorf("segments of %s: %w", serving.sink, errors.Join(err, errors.New("ended unexpectedly"))):
			default:
			}
		}
	})
}

// drop stops the versions that the record does not have any more, or that are to be deleted. A process
// that feeds the view deletes them. Each such process deletes after it has stopped, because those that
// stop later may have written again.
func (v *view) drop(ctx context.Context, state versions.State) error {
	var errs []error
	for _, o := range v.open {
		s, there := state.Find(o.name)
		if o == v.now() || there && !s.Dropped {
			continue
		}
		if o.cancel != nil {
			o.cancel()
			o.stopped.Wait()
		}
		v.app.queues.remove("view " + o.sink)
		v.mu.Lock()
		delete(v.open, o.name)
		v.mu.Unlock()
		if v.feeds && !there { // otherwise it is deleted below
			errs = append(errs, v.Drop(ctx, v.app.viewSinks, o.sink))
		}
	}
	if !v.feeds {
		return errors.Join(errs...)
	}
	for _, s := range state.Versions {
		if !s.Dropped || v.find(s.Name) != nil {
			continue
		}
		// Again, because the process that has deleted it may have died before it changed the record.
		err := v.Drop(ctx, v.app.viewSinks, versions.Sink(v.Name, s.Name))
		if err == nil {
			_, err = v.update(ctx, func(state *versions.State) error {
				state.Remove(s.Name)
				return nil
			})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// speed measures how many records per second pass, over the last seconds.
type speed struct {
	mu        sync.Mutex
	at        time.Time
	passed    uint64
	perSecond float64
}

// measure counts the records that have passed until now.
func (s *speed) measure(now time.Time, passed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if took := now.Sub(s.at).Seconds(); !s.at.IsZero() && took > 0 && passed >= s.passed {
		rate := float64(passed-s.passed) / took
		if s.perSecond == 0 {
			s.perSecond = rate
		}
		s.perSecond += (rate - s.perSecond) / 3
	}
	s.at, s.passed = now, passed
}

// rate returns the records per second, 0 if it is not known.
func (s *speed) rate() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.perSecond
}

// contents returns the documents of a version for a comparison. ok is false if its view has none that
// can be compared.
func (o *version) contents() (c readmodels.Contents, ok bool) {
	c, ok = o.OpenView.(readmodels.Contents)
	return c, ok
}
