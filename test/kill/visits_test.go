package kill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/kafka"
)

const (
	visitors      = 4
	visitInterval = 100 * time.Millisecond // between two events of a visitor
	visitTimeout  = 15 * time.Second       // of one attempt to send an event; the intake answers within 10 s
)

// visits records the events that visitors have sent, like ledger for commands.
type visits struct {
	mu  sync.Mutex
	all map[string]visit // by message id
	row []string         // the user ids of the visitors of the present row
}

// visit is one event, however often it was sent.
type visit struct {
	row          int
	acknowledged bool
}

// begin starts a row with visitors of its own.
func (v *visits) begin() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.row = nil
	for range visitors {
		v.row = append(v.row, uuid.NewString())
	}
	return v.row
}

// set records an event, or that it was acknowledged.
func (v *visits) set(id string, row int, acknowledged bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all == nil {
		v.all = map[string]visit{}
	}
	v.all[id] = visit{row, acknowledged}
}

// sent returns all events that were sent, and the visitors of the present row.
func (v *visits) sent() (map[string]visit, []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.all), v.row
}

// traffic is visitors that send events until they are stopped.
type traffic struct {
	system *system
	stop   context.CancelFunc
	group  errgroup.Group
}

// startVisits makes visitors send events to the role tracking until end is called. Every second one
// gives up an event at the first error, so its outcome is unknown. The others send it again with the
// same message id, as Segment's clients do.
func (s *system) startVisits(ctx context.Context) *traffic {
	running, stop := context.WithCancel(ctx)
	t := &traffic{system: s, stop: stop}
	row := s.ledger.row
	for n, visitor := range s.visits.begin() {
		t.group.Go(func() error { return t.visit(running, row, visitor, n%2 == 1) })
	}
	return t
}

// end stops the visitors, and returns once the last events were answered.
func (t *traffic) end() error {
	t.stop()
	return t.group.Wait()
}

// visit sends the events of one visitor.
func (t *traffic) visit(running context.Context, row int, visitor string, givesUp bool) error {
	tick := time.NewTicker(visitInterval)
	defer tick.Stop()
	for running.Err() == nil {
		id := key("visit")
		t.system.visits.set(id, row, false)
		for deadline := time.Now().Add(commandTimeout); ; {
			done, err := t.send(context.WithoutCancel(running), visitor, id)
			if done {
				t.system.visits.set(id, row, true)
				break
			}
			if refused := (*refusedVisit)(nil); errors.As(err, &refused) {
				return err
			}
			if givesUp {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("event %s is not accepted within %v: %w", id, commandTimeout, err)
			}
			<-tick.C
		}
		<-tick.C
	}
	return nil
}

// refusedVisit means that the intake refuses a valid event.
type refusedVisit struct{ answer string }

func (e *refusedVisit) Error() string { return "a valid event is refused: " + e.answer }

// send sends an event once. done is true if it was acknowledged.
func (t *traffic) send(ctx context.Context, visitor, id string) (done bool, err error) {
	i, _, err := t.system.role("tracking").now()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, visitTimeout)
	defer cancel()
	body := fmt.Sprintf(`{"messageId":%q,"userId":%q,"event":"Product Viewed","properties":{"sku":%q}}`,
		id, visitor, sku(rand.IntN(productCount)))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+i.tracking+"/v1/track", strings.NewReader(body))
	if err != nil {
		return false, err
	}
	request.SetBasicAuth(tracking.DemoKey, "")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end, or broken
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return false, err
	case response.StatusCode == http.StatusOK:
		return true, nil
	case response.StatusCode == http.StatusTooManyRequests, response.StatusCode >= http.StatusInternalServerError:
		return false, fmt.Errorf("%s: %s", response.Status, answer)
	}
	return false, &refusedVisit{fmt.Sprintf("%s: %s", response.Status, answer)}
}

// auditVisits looks for every event that visitors have sent, in this row and all before it, on the
// topic and in the table. The view must count the events of each visitor of this row once.
func (s *system) auditVisits(ctx context.Context, f *findings) error {
	sent, visitors := s.visits.sent()
	if len(sent) == 0 {
		return nil
	}
	for _, v := range sent {
		switch ours := v.row == s.ledger.row; {
		case ours && v.acknowledged:
			f.acknowledged++
		case ours:
			f.unknown++
		}
	}
	topic, of := map[string]int{}, map[string]uint64{} // events by message id, and by visitor
	err := s.readAll(ctx, event.Behavior.Topic, func(m kafka.Message) error {
		_, e, err := behavior.FromRecord(m.Key, m.Value, m.Headers)
		if err == nil {
			topic[e.GetMessageId()]++
			of[e.GetUserId()]++
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read topic %s: %w", event.Behavior.Topic, err)
	}
	f.traceVisits("topic "+event.Behavior.Topic, sent, topic)
	table := map[string]int{}
	out, err := s.run(ctx, "sql", "--output", "json", "SELECT message_id FROM behavior_events")
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		var row struct {
			ID string `json:"message_id"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		table[row.ID]++
	}
	f.traceVisits("table behavior_events", sent, table)
	for _, visitor := range visitors {
		if of[visitor] == 0 {
			continue // every event of this visitor was given up, so nobody knows of it
		}
		out, err := s.run(ctx, "profile", "--output", "json", visitor)
		if err != nil {
			return err
		}
		var answer struct {
			Profile struct {
				Behavior struct {
					Events uint64 `json:"events,string"`
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			return fmt.Errorf("%q: %w", out, err)
		}
		switch shown := answer.Profile.Behavior.Events; {
		case shown > of[visitor]:
			f.add(&f.doubled, "the profile of visitor %s counts %d events, the topic has %d", visitor, shown, of[visitor])
		case shown < of[visitor]:
			f.add(&f.lost, "the profile of visitor %s counts %d events, the topic has %d", visitor, shown, of[visitor])
		}
	}
	return nil
}

// traceVisits looks for each event on a side that has them so often.
func (f *findings) traceVisits(side string, sent map[string]visit, have map[string]int) {
	for id, v := range sent {
		switch n := have[id]; {
		case n > 1:
			f.add(&f.doubled, "%s has event %s %d times", side, id, n)
		case n == 0 && v.acknowledged:
			f.add(&f.lost, "%s is missing event %s", side, id)
		}
	}
}

// trackingSteps returns the steps of the intake: an event was accepted and is to be written, and it
// was written and is to be answered.
func trackingSteps() []step {
	return []step{
		{role: "tracking", point: "tracking.write.before", name: "before write", at: 5},
		{role: "tracking", point: "tracking.write.after", name: "after write", at: 5, after: true},
	}
}
