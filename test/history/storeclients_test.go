package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// perform calls the store as op says and records the answer. It returns an error only if there was
// no answer.
func perform(ctx context.Context, s eventstore.Store, op *storeOp) error {
	c, a := op.Asked, &op.Answer
	switch c.Kind {
	case loadStream:
		events, err := s.Load(ctx, streamName(c.Shelf, c.Stream), c.After)
		if err != nil {
			return err
		}
		for _, e := range events {
			a.Events = append(a.Events, versioned{e.ID, e.Version})
		}
		a.Outcome = looked
		return nil
	case lookUpKey:
		first, ok, err := s.LoadAnswer(ctx, c.Key)
		if err != nil {
			return err
		}
		if ok {
			a.Kept = keptIn(first)
		}
		a.Outcome = looked
		return nil
	case appendBatch:
	}
	done, err := s.Append(ctx, c.batch())
	var refused *eventstore.ConflictError
	var first *eventstore.AnsweredError
	switch {
	case err == nil:
		a.Outcome, a.Position = stored, done.Position
	case errors.As(err, &first):
		a.Outcome, a.Kept = answered, keptIn(first.Answer)
	case errors.As(err, &refused):
		a.Outcome, a.Stream, a.Actual = conflict, -1, refused.Actual
		for _, w := range c.Writes {
			if streamName(c.Shelf, w.Stream) == refused.Stream {
				a.Stream = w.Stream
			}
		}
		if a.Stream < 0 {
			return fmt.Errorf("%w of a stream that is not in the batch", err)
		}
	default:
		return err
	}
	return nil
}

func keptIn(a eventstore.Answer) kept { return kept{string(a.Response), a.Version, a.Position} }

func (c storeCall) batch() eventstore.Batch {
	var b eventstore.Batch
	now := event.Time(time.Now())
	var version uint64
	for _, w := range c.Writes {
		s := eventstore.StreamAppend{Stream: streamName(c.Shelf, w.Stream), ExpectedVersion: w.Expected}
		for _, id := range w.IDs {
			s.Events = append(s.Events,
				event.Event{ID: id, Type: "t", OccurredAt: now, RecordedAt: now, CausationID: c.Key})
		}
		b.Streams, version = append(b.Streams, s), w.Expected+uint64(len(w.IDs))
	}
	if c.Key != "" {
		b.Answer = eventstore.Answer{Key: c.Key, Fingerprint: []byte(c.Key), Response: []byte(c.Tag),
			Stream: streamName(c.Shelf, 0), Version: version}
	}
	return b
}

// storeClients work on one store concurrently, on so few streams that they conflict.
type storeClients struct {
	store  eventstore.Store
	first  int                 // number of the first client; each process has other numbers
	number int                 // of clients
	rounds [shelvesAtOnce]int  // number of shelves that others have filled at each place
	resend []storeCall         // appends under keys whose answers were lost
	record func(storeOp) error // called before a call, with Return 0, and after its answer

	mu   sync.Mutex
	used []storeCall // recent appends under keys, for lookups and repetitions
}

const (
	shelvesAtOnce = 3
	fullAt        = 40 // versions, then a new shelf: short streams keep loads and the search cheap
	resendings    = 3
	keysOfLate    = 32

	shelfName = "shelf %d.%d" // place and round
)

// run works until ctx ends.
func (w *storeClients) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range w.number {
		c := &storeClient{storeClients: w, number: w.first + i, rounds: w.rounds, versions: map[string][2]uint64{}}
		if i == 0 {
			c.pending = w.resend
		}
		g.Go(func() error { return c.run(ctx) })
	}
	return g.Wait()
}

type storeClient struct {
	*storeClients
	number   int
	calls    int
	rounds   [shelvesAtOnce]int   // number of filled shelves at each place
	versions map[string][2]uint64 // of streams, as far as the client knows
	pending  []storeCall
}

func (c *storeClient) run(ctx context.Context) error {
	for _, lost := range c.pending {
		if err := c.settle(ctx, lost); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		if err := c.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// next does one thing, chosen at random.
func (c *storeClient) next(ctx context.Context) error {
	at := rand.IntN(shelvesAtOnce)
	shelf := fmt.Sprintf(shelfName, at, c.rounds[at])
	known := c.versions[shelf]
	if max(known[0], known[1]) >= fullAt {
		delete(c.versions, shelf)
		c.rounds[at]++
		return nil
	}
	request := storeCall{Shelf: shelf, Stream: rand.IntN(2)}
	switch chance := rand.IntN(100); {
	case chance < 20:
		request.Kind, request.After = loadStream, rand.Uint64N(known[request.Stream]+2)
		_, err := c.call(ctx, request)
		return err
	case chance < 32:
		of, ok := c.recent()
		if !ok {
			return nil
		}
		_, err := c.call(ctx, storeCall{Kind: lookUpKey, Shelf: of.Shelf, Key: of.Key})
		return err
	case chance < 37: // repeat a sending that is answered, or about to be
		if again, ok := c.recent(); ok {
			return c.settle(ctx, again)
		}
		return nil
	case chance < 42: // a command that changes nothing stores only its answer
		request.Key = uuid.NewString()
	case chance < 54:
		request.Writes = []write{{Stream: 0, Expected: known[0]}, {Stream: 1, Expected: known[1]}}
	default:
		request.Writes = []write{{Stream: request.Stream, Expected: known[request.Stream]}}
	}
	request.Kind = appendBatch
	if rand.IntN(10) == 0 && len(request.Writes) > 0 { // a wrong client, but its conflict must be reported correctly, too
		request.Writes[0].Expected = request.Writes[0].Expected + 2 - min(request.Writes[0].Expected+2, rand.Uint64N(4))
	}
	if rand.IntN(10) < 7 {
		request.Key = uuid.NewString()
	}
	return c.settle(ctx, request)
}

// settle sends an append, and repeats it under its key while the answer is lost.
func (c *storeClient) settle(ctx context.Context, request storeCall) error {
	for range 1 + resendings {
		c.sending(&request)
		a, err := c.call(ctx, request)
		if err != nil || a.Outcome != lost || request.Key == "" || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// sending gives the next sending of an append its own events and tag.
func (c *storeClient) sending(request *storeCall) {
	request.Tag = fmt.Sprintf("%d.%d", c.number, c.calls)
	writes := make([]write, len(request.Writes))
	for i, w := range request.Writes {
		n := len(w.IDs) // as many as before
		if n == 0 {
			n = 1 + rand.IntN(3)
		}
		writes[i] = write{Stream: w.Stream, Expected: w.Expected, IDs: make([]uuid.UUID, n)}
		for j := range n {
			writes[i].IDs[j] = uuid.New()
		}
	}
	request.Writes = writes
	if request.Key == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.used) == keysOfLate {
		c.used = c.used[1:]
	}
	c.used = append(c.used, *request)
}

// recent returns a recent append under a key.
func (c *storeClient) recent() (storeCall, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.used) == 0 {
		return storeCall{}, false
	}
	return c.used[rand.IntN(len(c.used))], true
}

// call makes and records one call. Some are cancelled. It fails only if the store broke its
// contract, or if recording failed.
func (c *storeClient) call(ctx context.Context, request storeCall) (storeAnswer, error) {
	if rand.IntN(12) == 0 {
		short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Microsecond)
		defer cancel()
		ctx = short
	}
	op := storeOp{ID: fmt.Sprintf("%d.%d", c.number, c.calls), Client: c.number, Asked: request}
	c.calls++
	op.Call = moment()
	if err := c.record(op); err != nil {
		return storeAnswer{}, err
	}
	err := perform(ctx, c.store, &op)
	op.Return = moment()
	switch {
	case errors.Is(err, eventstore.ErrInvalid):
		return op.Answer, err
	case err != nil:
		op.Answer = storeAnswer{Outcome: lost}
		pause(ctx)
		return op.Answer, nil
	}
	c.learn(op)
	return op.Answer, c.record(op)
}

// pause prevents clients of an unavailable store from filling the history with lost calls.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Millisecond):
	}
}

// learn records the versions in an answer.
func (c *storeClient) learn(op storeOp) {
	known := c.versions[op.Asked.Shelf]
	switch a := op.Answer; {
	case op.Asked.Kind == loadStream && len(a.Events) > 0:
		known[op.Asked.Stream] = a.Events[len(a.Events)-1].Version
	case a.Outcome == conflict:
		known[a.Stream] = a.Actual
	case a.Outcome == stored:
		for _, w := range op.Asked.Writes {
			known[w.Stream] = w.Expected + uint64(len(w.IDs))
		}
	}
	c.versions[op.Asked.Shelf] = known
}

// follow reads a store from a position on, and continues as it grows, until ctx ends.
func follow(ctx context.Context, s eventstore.Store, after event.Position, saw func([]place) error) error {
	for {
		some, err := s.Read(ctx, after, 100)
		if err == nil && len(some) == 0 {
			err = s.Wait(ctx, after)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if err != nil {
			pause(ctx)
			continue
		}
		places := make([]place, len(some))
		for i, e := range some {
			places[i], after = place{e.ID, e.Position}, e.Position
		}
		if err := saw(places); err != nil {
			return err
		}
	}
}
