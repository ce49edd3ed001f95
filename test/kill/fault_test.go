package kill

import (
	"context"
	"fmt"
	"time"
)

// fault breaks one thing of a system under load, and then repairs it or waits until the system has.
type fault func(ctx context.Context, s *system) error

// step is a failpoint in the work of a role.
type step struct {
	role  string
	point string // its name in internal/failpoint
	name  string // in the row's name
	at    int    // the pass at which it fires: late enough to be under load
	after bool   // the external effect has happened, so an error here is a lost answer

	// check is an additional condition of the step's rows. It may be nil.
	check func(ctx context.Context, s *system) error

	// restart is a failpoint whose error makes the role start over. Steps of the start need it,
	// because the role has already started when the step is armed. Steps of the normal work do not.
	restart string
}

// failure returns the name of an error at the step.
func (st step) failure() string {
	if st.after {
		return "lost answer"
	}
	return "error"
}

const (
	failpointTimeout = 4 * time.Minute // until an armed failpoint fires under load
	recoveryTimeout  = 4 * time.Minute // until a broken part works again
)

// arm arms the step in the current process of its role. It also returns how often the role was
// started, so that a fault can wait for the next start.
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
	if err := await(ctx, "process killed at "+st.point, failpointTimeout,
		func() (bool, error) { return i.ended(), nil }); err != nil {
		return err
	}
	return r.backSince(ctx, starts)
}

// backSince waits until the role has been started again.
func (r *role) backSince(ctx context.Context, starts int) error {
	return await(ctx, "role "+r.name+" restarted", recoveryTimeout, func() (bool, error) {
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
	fired := func() (bool, error) { return i.fired(ctx, st.point) }
	return await(ctx, "error returned at "+st.point, failpointTimeout, fired)
}

// freeze stops the process at the step with SIGSTOP, as if its machine slept. Nothing replaces it.
func (st step) freeze(ctx context.Context, s *system) error {
	_, i, _, err := st.arm(ctx, s, "stop")
	if err != nil {
		return err
	}
	if err := await(ctx, "frozen at "+st.point, failpointTimeout, i.frozen); err != nil {
		return err
	}
	if err := sleep(ctx, freezeFor()); err != nil {
		return err
	}
	return i.resume()
}

// zombie freezes the process at the step. The scheduler considers it dead and starts another one.
// Then the first process wakes up in the middle of its work and continues. It is asked to stop
// after its successor has done much work beside it.
func (st step) zombie(ctx context.Context, s *system) error {
	r, i, _, err := st.arm(ctx, s, "stop")
	if err != nil {
		return err
	}
	if err := await(ctx, "frozen at "+st.point, failpointTimeout, i.frozen); err != nil {
		return err
	}
	asleep := time.Now()
	zombie, err := r.replace(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, freezeFor()-time.Since(asleep)); err != nil {
		return err
	}
	if err := zombie.resume(); err != nil {
		return err
	}
	if err := s.awaitCommands(ctx, 300); err != nil {
		return err
	}
	return zombie.Stop(stopTimeout) // a fenced one may have exited by itself
}

// freezeFor returns how long a process sleeps. In the full matrix that is longer than every timeout
// of a session, a transaction or a request (10 to 30 s). The quick part tests what a zombie does
// when it wakes up. There, the successor's start takes over the transactional id or the table, so a
// shorter sleep is enough.
func freezeFor() time.Duration {
	if allRows() {
		return 31 * time.Second
	}
	return 12 * time.Second
}

// sleep waits for the duration of a fault, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitCommands waits until n more commands have been acknowledged.
func (s *system) awaitCommands(ctx context.Context, n int) error {
	goal := s.ledger.acknowledged() + n
	return await(ctx, fmt.Sprintf("%d more commands acknowledged", n), recoveryTimeout, func() (bool, error) {
		return s.ledger.acknowledged() >= goal, s.failed()
	})
}
