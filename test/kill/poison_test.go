package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// poisonRows returns the rows in which the views cannot apply the events of some streams: their code
// panics, as by a mistake of a release. Then the mistake is corrected, and the parked events are
// applied while the role is killed, fails, or loses an answer.
func poisonRows(at string) []row {
	const view = "orderstatus/v2"
	var rows []row
	for _, st := range []step{
		{role: "views", point: "view." + view + ".release.before", name: "parked events before release", at: 2},
		{role: "views", point: "view." + view + ".release.after", name: "parked events after release", at: 2, after: true},
	} {
		name := at + st.role + "/" + st.name + "/"
		rows = append(rows,
			row{name: name + "kill", step: st, fault: st.release(view, "kill"), quick: at != "" && !st.after},
			row{name: name + st.failure(), step: st, fault: st.release(view, "error")})
	}
	return rows
}

// release parks streams of a view, and breaks the step in which they are released.
func (st step) release(view, action string) fault {
	return func(ctx context.Context, s *system) error {
		r := s.role(st.role)
		i, _, err := r.now()
		if err == nil {
			err = i.arm(ctx, "view.poison=on")
		}
		if err != nil {
			return err
		}
		if err := await(ctx, "streams parked in "+view, failpointTimeout, func() (bool, error) {
			n, err := s.parked(ctx, view)
			return n >= 3, err
		}); err != nil {
			return err
		}
		if _, _, _, err := st.arm(ctx, s, action); err != nil {
			return err
		}
		_, starts, err := r.now()
		if err == nil {
			err = i.arm(ctx, "view.poison=off")
		}
		if err != nil {
			return err
		}
		if err := await(ctx, action+" at "+st.point, failpointTimeout, func() (bool, error) {
			// It fails if the process ends meanwhile, or if everything is released.
			_, _ = s.run(ctx, "dlq", "retry", view, "--wait", "2s")
			if action != "kill" {
				return i.fired(ctx, st.point)
			}
			_, now, err := r.now()
			return now > starts, err
		}); err != nil {
			return err
		}
		return awaitNothingParked(ctx, s)
	}
}

// parked returns the number of parked streams of a sink, or of all sinks if it is empty.
func (s *system) parked(ctx context.Context, sink string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := s.run(ctx, "dlq", "ls", "--output", "json", "--sink", sink)
	if err != nil {
		return 0, err
	}
	var r struct {
		Counts []struct {
			Streams int `json:"streams,string"`
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return 0, fmt.Errorf("decode the output of dlq ls: %w", err)
	}
	n := 0
	for _, c := range r.Counts {
		n += c.Streams
	}
	return n, nil
}

// awaitNothingParked waits until every stream is released. The assignment of partitions to a new
// process, or the retry of a running one, does that by itself.
func awaitNothingParked(ctx context.Context, s *system) error {
	var last error // while the process is not ready, it does not answer
	err := await(ctx, "every stream released", settleTimeout, func() (bool, error) {
		var n int
		n, last = s.retryParked(ctx)
		return n == 0 && last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// retryParked retries the first view that has parked streams, and returns their number.
func (s *system) retryParked(ctx context.Context) (int, error) {
	for _, view := range []string{"orderstatus/v2", "catalog/v2", "customer360/v2"} {
		n, err := s.parked(ctx, view)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			_, _ = s.run(ctx, "dlq", "retry", view, "--wait", "5s")
			return n, nil
		}
	}
	return 0, nil
}
