package kill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

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

func (f *findings) add(count *int, format string, args ...any) {
	*count++
	if len(f.examples) < 5 {
		f.examples = append(f.examples, fmt.Sprintf(format, args...))
	}
}

func (f *findings) wrong() error {
	if f.lost+f.doubled+f.disordered == 0 {
		return nil
	}
	return fmt.Errorf("%d lost, %d doubled, %d out of order: %s", f.lost, f.doubled, f.disordered, strings.Join(f.examples, "; "))
}

// place is the expected place of an event in its stream.
type place struct {
	stream  string
	version uint64
}

// holder is a side that stores events: what it contains, and in which order per key.
type holder struct {
	name   string
	count  map[string]int    // by event id
	last   map[string]uint64 // version of the last event, by stream
	f      *findings
	places map[place]event.Event
}

func (f *findings) holder(name string) *holder {
	return &holder{name: name, f: f, count: map[string]int{}, last: map[string]uint64{}, places: map[place]event.Event{}}
}

// add adds the next event in the holder's order. The versions of a stream must be 1, 2, 3 …
func (h *holder) add(e event.Event) {
	id := e.ID.String()
	if h.count[id]++; h.count[id] > 1 {
		h.f.add(&h.f.doubled, "%s has version %d of %s again", h.name, e.Version, e.Stream)
		return
	}
	if _, taken := h.places[place{e.Stream, e.Version}]; taken {
		h.f.add(&h.f.doubled, "%s has two events as version %d of %s", h.name, e.Version, e.Stream)
	} else if e.Version != h.last[e.Stream]+1 {
		h.f.add(&h.f.disordered, "%s has version %d of %s after %d", h.name, e.Version, e.Stream, h.last[e.Stream])
	}
	h.places[place{e.Stream, e.Version}] = e
	h.last[e.Stream] = max(h.last[e.Stream], e.Version)
}

// audit looks for every acknowledged command, of this row and all before it, in the store, the
// topic, the tables and the views. It reads each side itself, so it does not depend on digests.
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
		case ours && !e.refused:
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
	return f, nil
}

func (s *system) auditEvents(ctx context.Context, f *findings, a event.Aggregate, acknowledged []entry) error {
	store, topic, table := f.holder("the store of "+a.Service), f.holder("topic "+a.Topic), f.holder("table "+tableOf(a))
	if err := s.readStore(ctx, a, store.add); err != nil {
		return fmt.Errorf("read %s: %w", store.name, err)
	}
	if err := s.readTopic(ctx, a, topic.add); err != nil {
		return fmt.Errorf("read %s: %w", topic.name, err)
	}
	if err := s.readTable(ctx, a, table.add); err != nil {
		return fmt.Errorf("read %s: %w", table.name, err)
	}
	f.follow(acknowledged, store, topic, table)
	return nil
}

// follow looks for each acknowledged command: in the store at the version in its receipt, and from
// there on the other sides.
func (f *findings) follow(acknowledged []entry, store *holder, others ...*holder) {
	byCommand := map[string]int{}
	for _, e := range store.places {
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
		at := place{c.token.Stream, c.token.Version}
		e, there := store.places[at]
		if !there || e.CausationID != c.key {
			f.add(&f.lost, "%s has not %s %s as version %d of %s", store.name, c.name, c.key, at.version, at.stream)
			continue
		}
		for _, h := range others {
			if h.count[e.ID.String()] == 0 {
				f.add(&f.lost, "%s has not %s %s, version %d of %s", h.name, c.name, c.key, at.version, at.stream)
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
		if isLitter(m) {
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
	if err := await(ctx, "queries are answered", settleWithin, func() (bool, error) { return query.get(ctx, "/readyz") == nil, nil }); err != nil {
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
			r, err := products.GetProduct(ctx, connect.NewRequest(&catalogv1.GetProductRequest{Sku: e.token.Stream, Token: e.opaque}))
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
		for _, e := range newest {
			g.Go(func() error {
				version, err := shown(ctx, e)
				if err != nil && connect.CodeOf(err) != connect.CodeNotFound && connect.CodeOf(err) != connect.CodeDeadlineExceeded {
					return fmt.Errorf("query %s: %w", e.token.Stream, err)
				}
				if version < e.token.Version {
					behind <- fmt.Sprintf("the view of %s shows version %d of %s, and %d was acknowledged (%v)", view, version, e.token.Stream, e.token.Version, err)
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
