// This file is the part of the admin API about dead letters.

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/streams"
)

// Limits of an answer about dead letters.
const (
	defaultDeadLetters = 100
	// maxDeadLetters is how many dead letters are counted. Their content is not kept.
	maxDeadLetters = 1_000_000
)

// ListDeadLetters implements AdminService.
func (p *App) ListDeadLetters(ctx context.Context, req *connect.Request[adminv1.ListDeadLettersRequest]) (
	*connect.Response[adminv1.ListDeadLettersResponse], error,
) {
	all, err := p.deadLettersBy(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	res := &adminv1.ListDeadLettersResponse{Counts: countDeadLetters(all)}
	slices.SortFunc(all, func(a, b *adminv1.DeadLetter) int {
		return cmp.Or(strings.Compare(a.Sink, b.Sink), strings.Compare(a.Topic, b.Topic),
			cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	limit := cmp.Or(int(req.Msg.Limit), defaultDeadLetters)
	res.DeadLetters = all[:min(limit, len(all))]
	return connect.NewResponse(res), nil
}

// deadLettersBy returns the dead letters that a request selects, in any order.
func (p *App) deadLettersBy(ctx context.Context, req *adminv1.ListDeadLettersRequest) ([]*adminv1.DeadLetter, error) {
	found := map[string]*adminv1.DeadLetter{}
	full := false
	err := streams.ReadDeadLetters(ctx, p.kafka, func(l streams.StoredDeadLetter) {
		id := l.ID()
		if l.Deleted {
			delete(found, id)
			return
		}
		d := deadLetter(id, l, req.Id != "")
		switch {
		case req.Id != "" && id != req.Id, req.Sink != "" && l.Sink != req.Sink,
			req.Key != "" && string(l.Key) != req.Key:
		case req.State != adminv1.DeadLetterState_DEAD_LETTER_STATE_UNSPECIFIED && d.State != req.State:
			delete(found, id) // it had that state before
		case found[id] == nil && len(found) >= maxDeadLetters:
			full = true
		default:
			found[id] = d
		}
	})
	if err != nil {
		return nil, err
	}
	if full {
		return nil, connect.NewError(connect.CodeResourceExhausted,
			fmt.Errorf("there are more than %d dead letters: select some by sink, key or state", maxDeadLetters))
	}
	all := make([]*adminv1.DeadLetter, 0, len(found))
	for _, d := range found {
		all = append(all, d)
	}
	return all, nil
}

// deadLetter returns the contract's form of a dead letter.
func deadLetter(id string, l streams.StoredDeadLetter, content bool) *adminv1.DeadLetter {
	d := &adminv1.DeadLetter{
		Id: id, Sink: l.Sink, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset,
		Key: strings.ToValidUTF8(string(l.Key), "\uFFFD"), Attempts: int32(l.Attempts),
		State: adminv1.DeadLetterState_DEAD_LETTER_STATE_REJECTED,
	}
	switch {
	case l.Parked && l.Attempts == 0:
		d.State = adminv1.DeadLetterState_DEAD_LETTER_STATE_WAITING
	case l.Parked:
		d.State = adminv1.DeadLetterState_DEAD_LETTER_STATE_PARKED
	}
	if l.Reason != nil {
		d.Reason = strings.ToValidUTF8(l.Reason.Error(), "\uFFFD")
	}
	if content {
		d.Value, d.ValueSize, d.Stack = l.Value, l.Size, strings.ToValidUTF8(l.Stack, "\uFFFD")
		d.Headers = make(map[string]string, len(l.Headers))
		for _, h := range l.Headers {
			d.Headers[strings.ToValidUTF8(h.Key, "\uFFFD")] = strings.ToValidUTF8(string(h.Value), "\uFFFD")
		}
	}
	return d
}

// countDeadLetters counts dead letters by sink, ordered by sink.
func countDeadLetters(all []*adminv1.DeadLetter) []*adminv1.DeadLetterCount {
	counts := map[string]*adminv1.DeadLetterCount{}
	type stream struct {
		sink, topic, key string
		partition        int32
	}
	parked := map[stream]bool{}
	for _, d := range all {
		c := counts[d.Sink]
		if c == nil {
			c = &adminv1.DeadLetterCount{Sink: d.Sink}
			counts[d.Sink] = c
		}
		switch d.State {
		case adminv1.DeadLetterState_DEAD_LETTER_STATE_PARKED:
			c.Parked++
		case adminv1.DeadLetterState_DEAD_LETTER_STATE_WAITING:
			c.Waiting++
		default:
			c.Rejected++
			continue
		}
		if s := (stream{d.Sink, d.Topic, d.Key, d.Partition}); !parked[s] {
			parked[s] = true
			c.Streams++
		}
	}
	list := make([]*adminv1.DeadLetterCount, 0, len(counts))
	for _, c := range counts {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *adminv1.DeadLetterCount) int { return strings.Compare(a.Sink, b.Sink) })
	return list
}

// RetryDeadLetters implements AdminService.
func (p *App) RetryDeadLetters(ctx context.Context, req *connect.Request[adminv1.RetryDeadLettersRequest]) (
	*connect.Response[adminv1.RetryDeadLettersResponse], error,
) {
	all, err := p.deadLettersBy(ctx, &adminv1.ListDeadLettersRequest{Sink: req.Msg.Sink})
	if err != nil {
		return nil, err
	}
	parked := slices.ContainsFunc(all, func(d *adminv1.DeadLetter) bool {
		return d.State != adminv1.DeadLetterState_DEAD_LETTER_STATE_REJECTED
	})
	if !parked {
		return nil, connect.NewError(connect.CodeFailedPrecondition,
			fmt.Errorf("sink %q has no parked events: `millrace dlq ls` lists the sinks that have", req.Msg.Sink))
	}
	letters := streams.NewDeadLetters(p.kafka)
	defer letters.Close()
	if err := letters.Redrive(ctx, req.Msg.Sink); err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.RetryDeadLettersResponse{}), nil
}

// DeleteDeadLetter implements AdminService.
func (p *App) DeleteDeadLetter(ctx context.Context, req *connect.Request[adminv1.DeleteDeadLetterRequest]) (
	*connect.Response[adminv1.DeleteDeadLetterResponse], error,
) {
	all, err := p.deadLettersBy(ctx, &adminv1.ListDeadLettersRequest{Id: req.Msg.Id})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, connect.NewError(connect.CodeNotFound,
			fmt.Errorf("unknown dead letter %q: `millrace dlq ls` lists them", req.Msg.Id))
	}
	letters := streams.NewDeadLetters(p.kafka)
	defer letters.Close()
	if err := letters.Delete(ctx, req.Msg.Id); err != nil {
		if errors.Is(err, streams.ErrNoDeadLetter) {
			err = connect.NewError(connect.CodeInvalidArgument, err)
		}
		return nil, err
	}
	// The log says later why a sink lacks an event.
	p.log.Warn("dead letter deleted; its event is skipped", "id", req.Msg.Id, "state", all[0].State.String(),
		"reason", all[0].Reason)
	return connect.NewResponse(&adminv1.DeleteDeadLetterResponse{}), nil
}
