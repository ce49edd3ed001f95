package commands

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
)

// joint is the part of a Task that concerns several streams.
type joint[S, C any, E proto.Message] struct {
	others []string // streams beside the Task's own
	decide func(states []S, c C) ([][]E, error)
}

// part is what a command does to one of its streams.
type part[S, E any] struct {
	stream        string
	before, after loaded[S]
	decided       []E
	events        []event.Event // decided, in their envelopes
}

// OnAll returns the command as a task on several streams, each named once, for Do. They are decided
// together and stored in one transaction, so a rule over all of them holds under any concurrency.
//
// decide replaces the decider's Decide. It gets the state of each stream, and returns the events of
// each, in the order of streams. The receipt is of the first stream. So if the command changes
// anything, it must have an event for that one.
func (r *Runner[S, C, E]) OnAll(
	streams []string, command C, decide func(states []S, c C) ([][]E, error),
) Task[S, C, E] {
	return Task[S, C, E]{r, streams[0], command, &joint[S, C, E]{streams[1:], decide}}
}

// decide loads the streams of the task, and decides the command on their states. If unread is true,
// it assumes a new stream.
func (t Task[S, C, E]) decide(ctx context.Context, unread bool) ([]part[S, E], error) {
	parts := []part[S, E]{{stream: t.stream}}
	if t.joint != nil {
		for _, stream := range t.joint.others {
			parts = append(parts, part[S, E]{stream: stream})
		}
	}
	states := make([]S, len(parts))
	for i := range parts {
		if unread {
			break
		}
		var err error
		if parts[i].before, err = t.load(ctx, parts[i].stream); err != nil {
			return nil, err
		}
		states[i] = parts[i].before.state
	}
	decided := make([][]E, 1)
	var err error
	if t.joint != nil {
		decided, err = t.joint.decide(states, t.command)
	} else {
		decided[0], err = t.decider.Decide(states[0], t.command)
	}
	if err != nil {
		return nil, err
	}
	some := false
	for i := range parts {
		p := &parts[i]
		p.decided, p.after = decided[i], p.before
		for _, e := range p.decided {
			p.after.state, p.after.version = t.decider.Evolve(p.after.state, e), p.after.version+1
			some = true
		}
	}
	if some && len(parts[0].decided) == 0 {
		return nil, fmt.Errorf("%s %q: the command changes other streams only, so it has no receipt", t.agg.Name, t.stream)
	}
	return parts, nil
}

// lock blocks until this task holds the locks of all its streams, and returns what releases them.
func (t Task[S, C, E]) lock(ctx context.Context) (done func(), err error) {
	streams := []string{t.stream}
	if t.joint != nil {
		streams = append(streams, t.joint.others...)
	}
	// All tasks lock in the same order, so that no two wait for each other.
	slices.Sort(streams)
	var held []func()
	release := func() {
		for _, done := range slices.Backward(held) {
			done()
		}
	}
	for _, stream := range streams {
		done, err := t.locks.lock(ctx, stream)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, done)
	}
	return release, nil
}
