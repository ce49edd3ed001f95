// Package dependency contains the faults of the servers that a process depends on, such as Redis or an
// object store. A server that fails is not called for a moment, so callers get an error at once and the
// server gets time to recover. A server that is slow cannot take all of a process's goroutines.
//
// Set has the settings, and one Dependency for each server. Dependency.Do guards a call, and
// Dependency.Transport the requests of an HTTP client. The circuit breaker and the bulkhead are those of
// failsafe-go.
//
// Invariants:
//
//   - Only what says that the server is sick counts as its failure: no connection, no answer in time, or
//     an answer that says so. An answer that refuses a request does not. A call that its caller gives up
//     says nothing, so it neither opens nor closes the breaker.
//   - A refused call has done nothing. Its error is a net.Error that is temporary, as that of a
//     connection, so callers treat both alike: queries are unavailable, and sinks try again. It is never
//     the fault of a record or a table.
package dependency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

const (
	window     = 10 * time.Second // in which failures are counted
	leastCalls = 20               // in window, before the breaker may open
	probes     = 2                // calls that must succeed before it closes
	// A call that its context has ended earlier says nothing about the server.
	patience = time.Second
	// How long a call waits while too many are in progress.
	maxWait = 5 * time.Second
)

// Settings are the settings of all dependencies.
type Settings struct {
	FailureRate int           // percentage of failed calls from which a server is not called; 0: never
	OpenFor     time.Duration // for how long, on average
	Concurrency int           // calls to a server at the same time
}

// Set has the dependencies of a process. It is safe for concurrent use.
type Set struct {
	settings Settings

	mu  sync.Mutex
	all map[string]*Dependency
}

// NewSet returns a Set without dependencies.
func NewSet(s Settings) *Set { return &Set{settings: s, all: map[string]*Dependency{}} }

// Named returns the dependency of a name. All clients of a server use the same one.
func (s *Set) Named(name string) *Dependency {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.all[name]
	if d == nil {
		d = newDependency(name, s.settings)
		s.all[name] = d
	}
	return d
}

// States returns the state of each dependency, sorted by name.
func (s *Set) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, 0, len(s.all))
	for _, name := range slices.Sorted(maps.Keys(s.all)) {
		states = append(states, s.all[name].state())
	}
	return states
}

// State is what a dependency does at a moment, and has counted until then.
type State struct {
	Name     string
	Breaker  Breaker
	InFlight int64
	// Calls. GivenUp are those that ended before anything was known of the server.
	Answered, Failed, GivenUp, Rejected uint64
}

// Breaker is the state of a circuit breaker.
type Breaker int

// The states, in the order of how bad they are.
const (
	Closed   Breaker = iota // calls pass
	HalfOpen                // some calls pass, to see whether the server has recovered
	Open                    // no call passes
)

// Dependency is a server. Its methods are safe for concurrent use. Nil is a server without a guard.
type Dependency struct {
	name     string
	breaker  circuitbreaker.CircuitBreaker[any] // nil if there is none
	places   bulkhead.Bulkhead[any]
	inFlight atomic.Int64
	ended    [3]atomic.Uint64 // calls, by outcome
	rejected atomic.Uint64
}

// outcome is what a call says of the server.
type outcome int

const (
	answered outcome = iota
	failed
	givenUp // nothing
)

func newDependency(name string, s Settings) *Dependency {
	d := &Dependency{name: name, places: bulkhead.New[any](uint(max(1, s.Concurrency)))}
	if s.FailureRate > 0 {
		d.breaker = circuitbreaker.NewBuilder[any]().
			WithFailureRateThreshold(float64(s.FailureRate)/100, leastCalls, window).
			WithSuccessThreshold(probes).
			// Processes that have lost the same server do not come back at the same moment.
			WithRandomDelay(s.OpenFor/2, s.OpenFor*3/2).
			Build()
	}
	return d
}

func (d *Dependency) state() State {
	s := State{Name: d.name, InFlight: d.inFlight.Load(), Answered: d.ended[answered].Load(),
		Failed: d.ended[failed].Load(), GivenUp: d.ended[givenUp].Load(), Rejected: d.rejected.Load()}
	switch {
	case d.breaker == nil || d.breaker.IsClosed():
	case d.breaker.IsHalfOpen() || d.breaker.RemainingDelay() == 0:
		s.Breaker = HalfOpen
	default:
		s.Breaker = Open
	}
	return s
}

// UnavailableError means that a call was not made. It is a temporary net.Error.
type UnavailableError struct {
	Dependency string
	reason     string
}

func (e *UnavailableError) Error() string { return e.Dependency + ": not called: " + e.reason }

// Timeout reports false: nobody has waited for the server.
func (*UnavailableError) Timeout() bool { return false }

// Temporary reports true: a later call may succeed.
func (*UnavailableError) Temporary() bool { return true }

var _ net.Error = (*UnavailableError)(nil)

// Do makes a call to the server, unless it must not be called now. Then the error is an
// *UnavailableError.
func (d *Dependency) Do(ctx context.Context, call func() error) error {
	if d == nil {
		return call()
	}
	c, err := d.begin(ctx)
	if err != nil {
		return err
	}
	err = call()
	c.end(c.outcome(err))
	return err
}

// call is a call in progress.
type call struct {
	of    *Dependency
	begun time.Time
}

// begin waits for a place, and asks the breaker. A call that is begun must be ended.
func (d *Dependency) begin(ctx context.Context) (call, error) {
	if !d.places.TryAcquirePermit() {
		switch err := d.places.AcquirePermitWithMaxWait(ctx, maxWait); {
		case err == nil: // even if ctx has ended meanwhile: the place must be given back
		case ctx.Err() != nil:
			return call{}, context.Cause(ctx)
		default:
			d.rejected.Add(1)
			return call{}, &UnavailableError{d.name, fmt.Sprintf("too many calls wait for it, since %v", maxWait)}
		}
	}
	if d.breaker != nil && !d.breaker.TryAcquirePermit() {
		d.places.ReleasePermit()
		d.rejected.Add(1)
		return call{}, &UnavailableError{d.name, fmt.Sprintf(
			"it failed in most of the last calls; the next attempt is in %v", d.breaker.RemainingDelay().Round(time.Millisecond))}
	}
	d.inFlight.Add(1)
	return call{d, time.Now()}, nil
}

// end ends a call.
func (c call) end(o outcome) {
	d := c.of
	d.inFlight.Add(-1)
	d.places.ReleasePermit()
	d.ended[o].Add(1)
	switch {
	case d.breaker == nil:
	case o == answered:
		d.breaker.RecordSuccess()
	// A half-open breaker waits for the result of each call that it has let pass.
	case o == failed, d.breaker.IsHalfOpen():
		d.breaker.RecordFailure()
	}
}

// outcome returns what an error says of the server.
func (c call) outcome(err error) outcome {
	var network net.Error
	switch {
	case err == nil:
		return answered
	case errors.Is(err, context.Canceled):
		return givenUp
	case errors.Is(err, context.DeadlineExceeded):
		if time.Since(c.begun) < patience {
			return givenUp
		}
		return failed
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), errors.As(err, &network):
		return failed
	}
	return answered
}

// String returns the name of a state.
func (b Breaker) String() string { return strings.Fields("closed half-open open")[b] }
