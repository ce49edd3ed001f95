package kill

import (
	"context"
	"fmt"
	"time"
)

// fault breaks one thing of a system under load and mends it, or waits until the system has.
type fault func(ctx context.Context, s *system) error

// step is a point in a role's work at which it can break.
type step struct {
	role  string
	point string // as internal/failpoint knows it
	name  string // in the row's name
	at    int    // which passing of the point, so that it lies within the load
	after bool   // the effect outside has happened: an error here is a lost answer

	// restart is a point where an error makes the role start over; empty if the role passes the
	// step in its normal work. A step of a start needs it, as the role has already started when the
	// step is armed.
	restart string
}

// failure returns what an error at the step stands for.
func (st step) failure() string {
	if st.after {
		return "lost answer"
	}
	return "error"
}

// How long a point may take until it is passed under load, and a broken thing until it is back.
const (
	firesWithin = 2 * time.Minute
	backWithin  = 2 * time.Minute
)

func (st step) arm(ctx context.Context, s *system, action string) (*role, *instance, int, error) {
	r := s.role(st.role)
	i, starts, err := r.now()
	if err == nil {
		err = i.arm(ctx, fmt.Sprintf("%s=%s@%d", st.point, action, st.at))
	}
	if err == nil && st.restart != "" {
		err = i.arm(ctx, st.restart+"=error@1")
	}
	return r, i, starts, err
}

// kill lets the process kill itself with SIGKILL at the step; the scheduler starts it again.
func (st step) kill(ctx context.Context, s *system) error {
	r, i, starts, err := st.arm(ctx, s, "kill")
	if err != nil {
		return err
	}
	if err := await(ctx, "dead at "+st.point, firesWithin, func() (bool, error) { return i.ended(), nil }); err != nil {
		return err
	}
	return r.backSince(ctx, starts)
}

// backSince waits until the role was started again.
func (r *role) backSince(ctx context.Context, starts int) error {
	return await(ctx, "role "+r.name+" started again", backWithin, func() (bool, error) {
		_, now, err := r.now()
		return now > starts, err
	})
}

// fail lets the step return an error, once.
func (st step) fail(ctx context.Context, s *system) error {
	_, i, _, err := st.arm(ctx, s, "error")
	if err != nil {
		return err
	}
	return await(ctx, "failed at "+st.point, firesWithin, func() (bool, error) { return i.fired(ctx, st.point) })
}

// freeze stops the process at the step with SIGSTOP, for as long as a machine may sleep, and nobody
// takes its place.
func (st step) freeze(ctx context.Context, s *system) error {
	_, i, _, err := st.arm(ctx, s, "stop")
	if err != nil {
		return err
	}
	if err := await(ctx, "frozen at "+st.point, firesWithin, i.frozen); err != nil {
		return err
	}
	if err := lasting(ctx, freezeFor()); err != nil {
		return err
	}
	return i.thaw()
}

// zombie freezes the process at the step; the scheduler, which thinks that it is dead, starts
// another, and then the first wakes up in the middle of its work and continues. It is let be until
// much has happened beside it, and then asked to end.
func (st step) zombie(ctx context.Context, s *system) error {
	r, i, _, err := st.arm(ctx, s, "stop")
	if err != nil {
		return err
	}
	if err := await(ctx, "frozen at "+st.point, firesWithin, i.frozen); err != nil {
		return err
	}
	asleep := time.Now()
	zombie, err := r.replace(ctx)
	if err != nil {
		return err
	}
	if err := lasting(ctx, freezeFor()-time.Since(asleep)); err != nil {
		return err
	}
	if err := zombie.thaw(); err != nil {
		return err
	}
	if err := s.flows(ctx, 300); err != nil {
		return err
	}
	return zombie.Stop(time.Minute) // one that was fenced has ended by itself
}

// freezeFor returns how long a process sleeps: in the whole matrix longer than every timeout of a
// session, a transaction or a request (10 to 30 s). The quick part is about what the zombie does
// when it wakes up; there, a role's successor is given what it needs of that by its start, which
// takes the transactional id or the table over, so a shorter sleep will do.
func freezeFor() time.Duration {
	if whole() {
		return 31 * time.Second
	}
	return 12 * time.Second
}

// lasting lets a fault last.
func lasting(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flows waits until so many more commands were acknowledged.
func (s *system) flows(ctx context.Context, n int) error {
	goal := s.ledger.acknowledged() + n
	return await(ctx, fmt.Sprintf("%d more commands acknowledged", n), backWithin, func() (bool, error) {
		return s.ledger.acknowledged() >= goal, s.failed()
	})
}
