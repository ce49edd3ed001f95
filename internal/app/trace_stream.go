// This file is TraceStream of the admin API, which follows one stream through every hop.

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/lake"
)

const (
	defaultTracedEvents = 20
	// Records of one partition that are read to find an event, and how many times that is done.
	maxSearched, maxSearches = 20_000, 25
	// The clock of the store may be ahead of the relay's, which sets the times of records.
	searchSkew = 5 * time.Second
)

// TraceStream implements AdminService.
func (p *App) TraceStream(ctx context.Context, req *connect.Request[adminv1.TraceStreamRequest]) (
	*connect.Response[adminv1.TraceStreamResponse], error,
) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	all := p.modules.aggregates()
	i := slices.IndexFunc(all, func(a event.Aggregate) bool { return a.Name == req.Msg.Aggregate })
	if i < 0 {
		var names []string
		for _, a := range all {
			names = append(names, a.Name)
		}
		return nil, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("aggregate %q is not one of %s", req.Msg.Aggregate, strings.Join(names, ", ")))
	}
	a, stream := all[i], event.CanonicalStream(all[i].Service, req.Msg.Stream)
	stored, err := p.stores[a.Name].Load(ctx, stream, 0)
	if err != nil {
		return nil, err
	}
	if len(stored) == 0 {
		return nil, connect.NewError(connect.CodeNotFound,
			fmt.Errorf("the store has no %s %q: correct the id, or name another aggregate", a.Name, stream))
	}
	res := &adminv1.TraceStreamResponse{Version: stored[len(stored)-1].Version}
	stored = stored[max(0, len(stored)-cmp.Or(int(req.Msg.Limit), defaultTracedEvents)):]
	progress, err := p.progress(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range stored {
		t := &adminv1.TracedEvent{Version: e.Version, Id: e.ID.String(), Type: e.Type, Position: e.Position.String(),
			RecordedAt: timestamppb.New(e.RecordedAt),
			Published:  e.Position.Compare(progress[a.Service].Position) <= 0}
		if trace := strings.Split(e.TraceParent, "-"); len(trace) == 4 {
			t.TraceId = trace[1]
		}
		res.Events = append(res.Events, t)
	}
	if err := p.locate(ctx, a.Topic, stream, stored, res.Events); err != nil {
		return nil, err
	}
	if res.Hops, err = p.hops(ctx, a, stream, located(res.Events)); err != nil {
		return nil, err
	}
	letters, err := p.deadLettersBy(ctx, &adminv1.ListDeadLettersRequest{Key: stream})
	if err != nil {
		return nil, err
	}
	for _, d := range letters {
		if d.Topic == a.Topic {
			d.Reason = "" // it can quote the event; ListDeadLetters has it
			res.DeadLetters = append(res.DeadLetters, d)
		}
	}
	slices.SortFunc(res.DeadLetters, func(a, b *adminv1.DeadLetter) int {
		return cmp.Or(strings.Compare(a.Sink, b.Sink), cmp.Compare(a.Offset, b.Offset))
	})
	return connect.NewResponse(res), nil
}

// locate finds events on their topic. The relay writes an event after it was recorded, so the search
// for one begins with the records of that time.
func (p *App) locate(
	ctx context.Context,
	topic, stream string,
	stored []event.Event,
	found []*adminv1.TracedEvent,
) error {
	byID := map[string]*adminv1.TracedEvent{}
	for _, e := range found {
		byID[e.Id] = e
	}
	ends, err := p.admin.EndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	searches := 0
	for i, e := range stored {
		if found[i].Offset != nil || !found[i].Published || searches == maxSearches {
			continue
		}
		searches++
		from, err := p.admin.OffsetsAt(ctx, topic, e.RecordedAt.Add(-searchSkew))
		if err != nil {
			return err
		}
		to := map[int32]int64{}
		for partition, at := range from {
			if at >= 0 { // otherwise no record is that new
				to[partition] = min(ends[partition], at+maxSearched)
			}
		}
		err = kafka.ReadAll(ctx, p.kafka, topic, from, to, func(m kafka.Message) error {
			if string(m.Key) != stream {
				return nil
			}
			e, err := event.FromRecord(m.Key, m.Value, m.Headers)
			if err != nil {
				return nil //nolint:nilerr // a foreign record is a dead letter, and no event of the store
			}
			if t := byID[e.ID.String()]; t != nil && t.Offset == nil { // the first: later ones are copies
				t.Partition, t.Offset, t.PublishedAt = proto.Int32(m.Partition), proto.Int64(m.Offset), timestamppb.New(m.Time)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// located returns the newest event that was found on Kafka, or nil.
func located(events []*adminv1.TracedEvent) *adminv1.TracedEvent {
	for _, e := range slices.Backward(events) {
		if e.Offset != nil {
			return e
		}
	}
	return nil
}

// shower is a view that knows which version of a stream it shows.
type shower interface {
	Shown(ctx context.Context, a event.Aggregate, stream string) (uint64, error)
}

// hops returns what the sinks of a topic have of a stream. newest is its newest event on Kafka, or
// nil. A sink that fails is reported as such, and the others are asked.
func (p *App) hops(ctx context.Context, a event.Aggregate, stream string, newest *adminv1.TracedEvent,
) ([]*adminv1.StreamHop, error) {
	var all []*adminv1.StreamHop
	add := func(sink string, next map[int32]int64) *adminv1.StreamHop {
		h := &adminv1.StreamHop{Sink: sink}
		if newest != nil {
			h.Next = next[newest.GetPartition()]
			h.Applied = h.Next > newest.GetOffset()
		}
		all = append(all, h)
		return h
	}
	for _, v := range p.views {
		for _, o := range v.versions() {
			addView(ctx, o, a, stream, add)
		}
	}
	if p.lake != nil {
		tables, err := p.lake.Tables(ctx)
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			if t.Topic != a.Topic {
				continue
			}
			if h := add("table "+t.Name, t.Offsets); h.Applied {
				if err := p.commitOf(ctx, t.Name, newest, h); err != nil {
					h.Error = err.Error()
				}
			}
		}
	}
	if p.vectors != nil && newest != nil {
		at, _ := p.vectors.Watermarks().Applied(a.Topic, newest.GetPartition())
		if slices.Contains(p.vectors.Store().Topics(), a.Topic) {
			add("features online", map[int32]int64{newest.GetPartition(): at.Next})
		}
	}
	if p.showsHistory(ctx) {
		tables, err := p.history.Status(ctx)
		if err != nil {
			all = append(all, &adminv1.StreamHop{Sink: "features", Error: err.Error()})
			return all, nil //nolint:nilerr // the answer has the error, and what the other sinks have
		}
		for _, t := range tables {
			if t.Topic == a.Topic {
				add("features "+t.Table, t.Next)
			}
		}
	}
	return all, nil
}

// addView adds the hop of a version of a view, if it is not being filled and reads the aggregate's topic.
func addView(ctx context.Context, o *version, a event.Aggregate, stream string,
	add func(sink string, next map[int32]int64) *adminv1.StreamHop,
) {
	if o.filling.Load() {
		return
	}
	for _, at := range o.runner.Progress() {
		if at.Topic != a.Topic {
			continue
		}
		h := add("view "+o.sink, at.Next)
		view, ok := o.OpenView.(shower)
		if !ok {
			continue
		}
		shown, err := view.Shown(ctx, a, stream)
		if err != nil {
			h.Error = err.Error()
			continue
		}
		h.Version = proto.Uint64(shown)
	}
}

// commitOf finds the snapshot by which a table got an event. Maintenance deletes old snapshots, so it
// may be a later one.
func (p *App) commitOf(ctx context.Context, table string, e *adminv1.TracedEvent, h *adminv1.StreamHop) error {
	name, err := lake.ParseName(table)
	if err != nil {
		return err
	}
	snapshots, err := p.lake.Snapshots(ctx, name)
	if err != nil {
		return err
	}
	for _, s := range slices.Backward(snapshots) { // the oldest first
		next, err := offsetIn(s.Offsets, e.GetPartition())
		if err != nil {
			return fmt.Errorf("snapshot %d: %w", s.ID, err)
		}
		if next > e.GetOffset() {
			h.Snapshot, h.CommittedAt = s.ID, timestamppb.New(s.Time)
			return nil
		}
	}
	return nil
}

// offsetIn returns the offset of a partition in the text of a snapshot, "0=12,3=4".
func offsetIn(offsets string, partition int32) (int64, error) {
	prefix := strconv.Itoa(int(partition)) + "="
	for one := range strings.SplitSeq(offsets, ",") {
		if text, ok := strings.CutPrefix(one, prefix); ok {
			next, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return 0, errors.New("its offsets cannot be read")
			}
			return next, nil
		}
	}
	return 0, nil
}
