package kill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/kafka"
)

// findings counts what the audit found about the clients' commands.
type findings struct {
	acknowledged int // in this row
	unknown      int // in this row: the client gave up, so either outcome is right
	lost         int // acknowledged, but missing on some side
	doubled      int // more than once on some side
	disordered   int // not in the order of their stream
	examples     []string
}

// add counts a finding, and keeps the first few as examples.
func (f *findings) add(count *int, format string, args ...any) {
	*count++
	if len(f.examples) < 5 {
		f.examples = append(f.examples, fmt.Sprintf(format, args...))
	}
}

// err returns the findings as an error, or nil if there are none.
func (f *findings) err() error {
	if f.lost+f.doubled+f.disordered == 0 {
		return nil
	}
	return fmt.Errorf("%d lost, %d doubled, %d out of order: %s", f.lost, f.doubled, f.disordered,
		strings.Join(f.examples, "; "))
}

// streamVersion identifies an event by its version in its stream.
type streamVersion struct {
	stream  string
	version uint64
}

// side is one place that stores events: the store, the topic or the table of an aggregate. It
// collects what that place contains, and compares the order of each stream.
type side struct {
	name     string
	findings *findings
	count    map[string]int    // by event id
	last     map[string]uint64 // version of the last event, by stream
	events   map[streamVersion]event.Event
}

func (f *findings) newSide(name string) *side {
	return &side{
		name: name, findings: f,
		count: map[string]int{}, last: map[string]uint64{}, events: map[streamVersion]event.Event{},
	}
}

// add adds the next event in the order of the side. The versions of a stream must be 1, 2, 3 …
func (s *side) add(e event.Event) {
	id := e.ID.String()
	if s.count[id]++; s.count[id] > 1 {
		s.findings.add(&s.findings.doubled, "%s has version %d of %s again", s.name, e.Version, e.Stream)
		return
	}
	if _, taken := s.events[streamVersion{e.Stream, e.Version}]; taken {
		s.findings.add(&s.findings.doubled, "%s has two events as version %d of %s", s.name, e.Version, e.Stream)
	} else if e.Version != s.last[e.Stream]+1 {
		s.findings.add(&s.findings.disordered, "%s has version %d of %s after %d", s.name, e.Version, e.Stream,
			s.last[e.Stream])
	}
	s.events[streamVersion{e.Stream, e.Version}] = e
	s.last[e.Stream] = max(s.last[e.Stream], e.Version)
}

// audit looks for every acknowledged command and every event of visitors, of this row and all before
// it, in the store, the topic, the tables and the views. It reads each side itself, so it does not
// depend on digests.
func (s *system) audit(ctx context.Context) (*findings, error) {
	f := &findings{}
	entries := map[string][]entry{} // acknowledged, by service
	for _, e := range s.ledger.entries() {
		switch ours := e.row == s.ledger.row; {
		case e.acknowledged:
			entries[e.token.Service] = append(entries[e.token.Service], e)
			if ours {
				f.acknowledged++
			}
		case ours && !e.rejected:
			f.unknown++
		}
	}
	for _, a := range event.Aggregates() {
		if err := s.auditEvents(ctx, f, a, entries[a.Service]); err != nil {
			return f, err
		}
	}
	if err := s.auditViews(ctx, f, entries); err != nil {
		return f, err
	}
	return f, s.auditVisits(ctx, f)
}

// auditEvents compares the store, the topic and the table of an aggregate.
func (s *system) auditEvents(ctx context.Context, f *findings, a event.Aggregate, acknowledged []entry) error {
	store := f.newSide("the store of " + a.Service)
	topic, table := f.newSide("topic "+a.Topic), f.newSide("table "+tableOf(a))
	if err := s.readStore(ctx, a, store.add); err != nil {
		return fmt.Errorf("read %s: %w", store.name, err)
	}
	if err := s.readTopic(ctx, a, topic.add); err != nil {
		return fmt.Errorf("read %s: %w", topic.name, err)
	}
	if err := s.readTable(ctx, a, table.add); err != nil {
		return fmt.Errorf("read %s: %w", table.name, err)
	}
	f.trace(acknowledged, store, topic, table)
	return nil
}

// trace looks for each acknowledged command: in the store at the version in its receipt, and from
// there on the other sides.
func (f *findings) trace(acknowledged []entry, store *side, others ...*side) {
	byCommand := map[string]int{}
	for _, e := range store.events {
		byCommand[e.CausationID]++
	}
	// This includes commands with an unknown outcome. No command of the load has more than one
	// event.
	for key, n := range byCommand {
		if n > 1 {
			f.add(&f.doubled, "%s has %d events of %s", store.name, n, key)
		}
	}
	for _, c := range acknowledged {
		at := streamVersion{c.token.Stream, c.token.Version}
		e, there := store.events[at]
		if !there || e.CausationID != c.key {
			f.add(&f.lost, "%s is missing %s %s as version %d of %s", store.name, c.name, c.key, at.version, at.stream)
			continue
		}
		for _, h := range others {
			if h.count[e.ID.String()] == 0 {
				f.add(&f.lost, "%s is missing %s %s, version %d of %s", h.name, c.name, c.key, at.version, at.stream)
			}
		}
	}
}

func tableOf(a event.Aggregate) string { return strings.TrimPrefix(a.Topic, "millrace.") + "_events" }

// readStore reads a store through its own connection, not through the system.
func (s *system) readStore(ctx context.Context, a event.Aggregate, each func(event.Event)) (err error) {
	store, err := s.openStore(ctx, a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for after := (event.Position{}); ; {
		events, err := store.Read(ctx, after, 2000)
		if err != nil || len(events) == 0 {
			return err
		}
		for _, e := range events {
			each(e)
		}
		after = events[len(events)-1].Position
	}
}

// readTopic reads the committed records of a topic.
func (s *system) readTopic(ctx context.Context, a event.Aggregate, each func(event.Event)) error {
	admin, err := kafka.NewAdmin(s.kafka())
	if err != nil {
		return err
	}
	defer admin.Close()
	end, err := admin.EndOffsets(ctx, a.Topic)
	if err != nil {
		return err
	}
	return kafka.ReadAll(ctx, s.kafka(), a.Topic, nil, end, func(m kafka.Message) error {
		if isGarbage(m) {
			return nil
		}
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err != nil {
			return err
		}
		each(e)
		return nil
	})
}

// readTable reads a table by SQL, in the order of the log.
func (s *system) readTable(ctx context.Context, a event.Aggregate, each func(event.Event)) error {
	out, err := s.run(ctx, "sql", "--output", "json",
		"SELECT event_id, aggregate_id, version FROM "+tableOf(a)+" ORDER BY partition, offset, event_id")
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		var row struct {
			ID      string      `json:"event_id"`
			Stream  string      `json:"aggregate_id"`
			Version json.Number `json:"version"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		e := event.Event{Stream: row.Stream}
		version, err := row.Version.Int64()
		if err == nil {
			e.Version = uint64(version)
			err = e.ID.UnmarshalText([]byte(row.ID))
		}
		if err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		each(e)
	}
	return lines.Err()
}

// auditViews queries the API with the token of each stream's last acknowledged command in this row.
func (s *system) auditViews(ctx context.Context, f *findings, acknowledged map[string][]entry) error {
	query, _, err := s.role("query").now()
	if err != nil {
		return err
	}
	ready := func() (bool, error) { return query.get(ctx, "/readyz") == nil, nil }
	if err := await(ctx, "the role query is ready", settleTimeout, ready); err != nil {
		return err
	}
	orders := orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+query.addr)
	products := catalogv1connect.NewCatalogQueryServiceClient(http.DefaultClient, "http://"+query.addr)
	for view, shown := range map[string]func(context.Context, entry) (uint64, error){
		event.Order.Service: func(ctx context.Context, e entry) (uint64, error) {
			r, err := orders.GetOrder(ctx, connect.NewRequest(&orderv1.GetOrderRequest{
				Key: &orderv1.GetOrderRequest_OrderId{OrderId: e.token.Stream}, Token: e.opaque,
			}))
			if err != nil {
				return 0, err
			}
			return r.Msg.GetOrder().GetVersion(), nil
		},
		event.Product.Service: func(ctx context.Context, e entry) (uint64, error) {
			request := &catalogv1.GetProductRequest{Sku: e.token.Stream, Token: e.opaque}
			r, err := products.GetProduct(ctx, connect.NewRequest(request))
			if err != nil {
				return 0, err
			}
			return r.Msg.GetProduct().GetVersion(), nil
		},
	} {
		newest := map[string]entry{}
		for _, e := range acknowledged[view] {
			if e.row == s.ledger.row && e.token.Version > newest[e.token.Stream].token.Version {
				newest[e.token.Stream] = e
			}
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		behind := make(chan string, len(newest))
		deadline := time.Now().Add(recoveryTimeout)
		for _, e := range newest {
			g.Go(func() error {
				version, err := shown(ctx, e)
				code := connect.CodeOf(err)
				// The server's own deadline is short for an overloaded machine.
				for ; code == connect.CodeDeadlineExceeded && time.Now().Before(deadline); code = connect.CodeOf(err) {
					version, err = shown(ctx, e)
				}
				// A view without the stream, or one that does not reach the token, is a finding.
				if err != nil && code != connect.CodeNotFound && code != connect.CodeDeadlineExceeded {
					return fmt.Errorf("query %s: %w", e.token.Stream, err)
				}
				if version < e.token.Version {
					behind <- fmt.Sprintf("the view of %s shows version %d of %s, but version %d was acknowledged (%v)",
						view, version, e.token.Stream, e.token.Version, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		close(behind)
		for what := range behind {
			f.add(&f.lost, "%s", what)
		}
	}
	return nil
}
