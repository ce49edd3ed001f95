package tracking

import (
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/internal/kafka"
)

// errUnavailable means that events cannot be written now, or that it is unknown whether they were.
// The client sends them again.
var errUnavailable = errors.New("the log is not available; try again")

// session is the life of one producer. It ends with the first error, because then it is unknown
// which of its records are on the log.
type session struct {
	producer *kafka.Producer
	writers  sync.WaitGroup
	broken   chan struct{} // closed after the first error
}

// outcome is the result of a request's write, for other requests with copies of its events.
type outcome struct {
	done chan struct{} // closed when err is set
	err  error
}

// copies recognises events that were received before. An event is on the log (recent), being written
// (pending), or new.
type copies struct {
	mu      sync.Mutex
	recent  *behavior.Recent
	pending map[uuid.UUID]*outcome
	session *session // nil while the log is not available
}

func newCopies(maxIDs int) *copies {
	return &copies{recent: behavior.NewRecent(maxIDs), pending: map[uuid.UUID]*outcome{}}
}

// claim is a request's events: those that it has to write, and the writes of others that it has to
// wait for.
type claim struct {
	session *session
	ours    outcome
	ids     []uuid.UUID // to write
	mine    []bool      // for each event of the request, whether it is to be written
	others  []*outcome

	// Memory of ids and mine for the most frequent request, which has one event.
	oneID   [1]uuid.UUID
	oneMine [1]bool
}

// claim decides which events of a request are new. The caller must write these, and then settle.
// Nothing can fail in between that would let a second request write the same event: the ids and the
// session are checked in one step.
func (c *copies) claim(ids []uuid.UUID, now time.Time) (*claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return nil, errUnavailable
	}
	k := &claim{session: c.session, ours: outcome{done: make(chan struct{})}}
	k.ids, k.mine = k.oneID[:0], k.oneMine[:]
	if len(ids) != 1 {
		k.mine = make([]bool, len(ids))
	}
	for i, id := range ids {
		if c.recent.Has(id, now) {
			continue
		}
		switch other := c.pending[id]; other {
		case nil:
			c.pending[id] = &k.ours
			k.ids = append(k.ids, id)
			k.mine[i] = true
		case &k.ours: // twice in one request
		default:
			k.others = append(k.others, other)
		}
	}
	k.session.writers.Add(1)
	return k, nil
}

// settle records the result of writing the events of a claim. After an error the session is over,
// before anybody can claim the events again.
func (c *copies) settle(k *claim, now time.Time, err error) {
	c.mu.Lock()
	for _, id := range k.ids {
		delete(c.pending, id)
		if err == nil {
			c.recent.Add(id, now)
		}
	}
	if err != nil && c.session == k.session {
		c.session = nil
		close(k.session.broken)
	}
	c.mu.Unlock()
	k.ours.err = err
	close(k.ours.done)
	k.session.writers.Done()
}

// open makes the log available.
func (c *copies) open(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
}

// close makes the log unavailable, and returns when no request writes to the session any more.
func (c *copies) close(s *session) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	c.mu.Unlock()
	s.writers.Wait()
}

// available reports whether events can be written.
func (c *copies) available() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil
}

// seen is an event that is on the log.
type seen struct {
	id uuid.UUID
	at time.Time
}

// addSeen remembers events that were read from the log.
func (c *copies) addSeen(all []seen) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range all {
		c.recent.Add(s.id, s.at)
	}
}

// len returns the number of ids that are remembered.
func (c *copies) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len()
}
