package kill

import (
	"context"
	"fmt"
	"time"
)

// fault breaks one thing of a system under load, and then repairs it or waits until the system has.
type fault func(ctx context.Context, s *system) error

// step is a point in a role's work at which it can break.
type step struct {
	role  string
	point string // its name in internal/failpoint
	name  string // in the row's name
	at    int    // on which pass, so that it happens during the load
	after bool   // the external effect has happened, so an error here is a lost answer

	// restart is a point at which an error makes the role start over. It is empty if the role
	// passes the step in its normal work. A step of a start needs it, because the role has already
	// started when the step is armed.
	restart string
}

// failure returns what an error at the step stands for.
func (st step) failure() string {
	if st.after {
		return "lost answer"
	}
	return "error"
}

// The time limits for passing an armed point under load, and for a broken part to be back.
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

// kill makes the process kill itself with SIGKILL at the step. The scheduler starts it again.
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

// backSince waits until the role has been started again.
func (r *role) backSince(ctx context.Context, starts int) error {
	return await(ctx, "role "+r.name+" started again", backWithin, func() (bool, error) {
		_, now, err := r.now()
		return now > starts, err
	})
}

// fail makes the step return an error, once.
func (st step) fail(ctx context.Context, s *system) error {
	_, i, _, err := st.arm(ctx, s, "error")
	if err != nil {
		return err
	}
	return await(ctx, "failed at "+st.point, firesWithin, func() (bool, error) { return i.fired(ctx, st.point) })
}

// freeze stops the process at the step with SIGSTOP, for as long as a machine may sleep. Nothing
// replaces it.
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

// zombie freezes the process at the step. The scheduler considers it dead and starts another. Then
// the first process wakes up in the middle of its work and continues. After much has happened
// beside it, it is asked to end.
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

// freezeFor returns how long a process sleeps. In the full matrix that is longer than every timeout
// of a session, a transaction or a request (10 to 30 s). The quick part tests what a zombie does
// when it wakes up. There, the successor's start takes over the transactional id or the table, so a
// shorter sleep is enough.
func freezeFor() time.Duration {
	if whole() {
		return 31 * time.Second
	}
	return 12 * time.Second
}

// lasting waits while a fault lasts.
func lasting(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flows waits until n more commands have been acknowledged.
func (s *system) flows(ctx context.Context, n int) error {
	goal := s.ledger.acknowledged() + n
	return await(ctx, fmt.Sprintf("%d more commands acknowledged", n), backWithin, func() (bool, error) {
		return s.ledger.acknowledged() >= goal, s.failed()
	})
}
