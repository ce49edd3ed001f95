package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The view that is built again, and the version that is built.
const (
	replayedView = "orderstatus/v2"
	nextVersion  = replayedView + "@next"
)

// attemptTimeout bounds one attempt of a command, while the process may be killed. The next one
// continues what it has begun.
const attemptTimeout = 20 * time.Second

// replaySteps returns the steps of building a view again. The record of the versions is changed four
// times: a version is begun, is complete, is swapped in, and is swapped out. In a process for each
// role, views complete it, and the other changes are made by admin.
func replaySteps(inOneProcess bool) []step {
	all := []step{
		{role: "views", point: "view." + nextVersion + ".apply.before", name: "replay before apply", at: 1},
		{role: "views", point: "view." + nextVersion + ".apply.after", name: "replay after apply", at: 1, after: true},
		{role: "views", point: "view." + nextVersion + ".positions.before", name: "replay before positions", at: 2},
		{role: "views", point: "view." + nextVersion + ".positions.after", name: "replay after positions", at: 2,
			after: true},
	}
	for _, change := range []struct {
		role, name  string
		alone, here int // which change of the record it is: in a process for each role, in one process
	}{
		{"admin", "replay begun", 1, 1}, {"views", "replay complete", 1, 2},
		{"admin", "version swapped in", 2, 3}, {"admin", "version swapped out", 3, 4},
	} {
		at := change.alone
		if inOneProcess {
			at = change.here
		}
		for _, side := range []string{"before", "after"} {
			all = append(all, step{role: change.role, point: "view." + replayedView + ".versions." + side,
				name: side + " " + change.name, at: at, after: side == "after"})
		}
	}
	return all
}

// replayRows returns the rows in which a view is built again under load, swapped in, and swapped out,
// while a process is killed, fails, or loses an answer.
func replayRows(at string) []row {
	var rows []row
	for _, st := range replaySteps(at != "") {
		name := at + st.role + "/" + st.name + "/"
		rows = append(rows,
			row{name: name + "kill", step: st, fault: st.replay("kill"),
				quick: at != "" && st.name == "before version swapped in"},
			row{name: name + st.failure(), step: st, fault: st.replay("error")})
	}
	return rows
}

// replay builds a version of a view, swaps it in, and back, as an operator who repeats each command
// until it has succeeded. The step breaks meanwhile. A version that differs from the one that serves
// is never swapped in, and the row is red.
func (st step) replay(action string) fault {
	return func(ctx context.Context, s *system) error {
		r, i, starts, err := st.arm(ctx, s, action)
		if err != nil {
			return err
		}
		for _, stage := range []struct {
			what    string
			command []string
			done    func(served string, versions int) bool
		}{
			{"the new version serves", []string{"replay", "--target", replayedView, "--version", "next"},
				func(serving string, _ int) bool { return serving == nextVersion }},
			{"the first version serves again", []string{"replay", "rollback", replayedView},
				func(serving string, _ int) bool { return serving == replayedView }},
			{"the new version is deleted", []string{"replay", "drop", nextVersion, "--yes"},
				func(_ string, versions int) bool { return versions == 1 }},
		} {
			if err := s.repeat(ctx, attemptTimeout, replayedView, stage.what, stage.command, stage.done); err != nil {
				return err
			}
		}
		if action == "kill" {
			return r.backSince(ctx, starts)
		}
		fired, err := i.fired(ctx, st.point)
		if err == nil && !fired {
			err = fmt.Errorf("%s was not reached", st.point)
		}
		return err
	}
}

// repeat runs a command until the versions of a view are as it should make them.
// within bounds each time.
func (s *system) repeat(ctx context.Context, within time.Duration, view, what string, command []string,
	done func(serving string, versions int) bool) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		serving, versions, err := s.versions(ctx, view)
		if err == nil && done(serving, versions) {
			return nil
		}
		if err == nil {
			err = s.attempt(ctx, within, command...)
		}
		if sleep(ctx, time.Second) != nil {
			return errors.Join(fmt.Errorf("timed out waiting until %s", what), err)
		}
	}
}

// attempt runs a command, and ends it after some time: a process that was killed continues at another
// address, for which a command does not look.
func (s *system) attempt(ctx context.Context, within time.Duration, command ...string) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := s.run(ctx, command...)
	return err
}

// versions returns the sink of a view's version that serves, and the number of its versions.
func (s *system) versions(ctx context.Context, view string) (serving string, n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := s.run(ctx, "replay", "ls", view, "--output", "json")
	if err != nil {
		return "", 0, err
	}
	var listed struct {
		Versions []struct{ Sink, State string }
	}
	if err := json.Unmarshal([]byte(out), &listed); err != nil {
		return "", 0, fmt.Errorf("decode the output of replay ls: %w", err)
	}
	for _, v := range listed.Versions {
		if v.State == "VERSION_STATE_SERVING" {
			serving = v.Sink
		}
	}
	return serving, len(listed.Versions), nil
}
