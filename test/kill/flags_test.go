package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// flagRows returns the rows in which a change of a flag is interrupted: after the value was produced,
// and before its entry of the history, and after both were committed. Then flag and history agree.
func flagRows(at string) []row {
	var rows []row
	for _, st := range []step{
		{role: "admin", point: "flags.value", name: "flag produced", at: 1},
		{role: "admin", point: "flags.committed", name: "flag committed", at: 1, after: true},
	} {
		name := at + st.role + "/" + st.name + "/"
		rows = append(rows,
			row{name: name + "kill", step: st, fault: st.setFlag("kill")},
			row{name: name + st.failure(), step: st, fault: st.setFlag("error")})
	}
	return rows
}

// setFlag breaks a change of a flag, and makes another one after it.
func (st step) setFlag(action string) fault {
	return func(ctx context.Context, s *system) error {
		// A flag of its own, because rows share a system.
		flag := "kill-" + strconv.FormatInt(time.Now().UnixNano(), 36) + "a"
		r, i, starts, err := st.arm(ctx, s, action)
		if err != nil {
			return err
		}
		_, setting := s.run(ctx, "flags", "set", flag, "1", "--reason", "broken")
		if action == "kill" {
			if err := r.backSince(ctx, starts); err != nil {
				return err
			}
		} else if fired, err := i.fired(ctx, st.point); err != nil {
			return err
		} else if !fired {
			return fmt.Errorf("the step %s was not reached", st.point)
		}
		// An answer that was lost within the process is looked up. One that a caller lost is an error to it.
		switch made := st.after && action != "kill"; {
		case made && setting != nil:
			return fmt.Errorf("the answer that was lost is not looked up: %w", setting)
		case !made && setting == nil:
			return errors.New("the broken change is answered as if it was made")
		}
		want := []string{"2"}
		if st.after {
			want = []string{"1", "2"}
		}
		if err := await(ctx, "the next change of a flag", recoveryTimeout, func() (bool, error) {
			_, err := s.run(ctx, "flags", "set", flag, "2", "--reason", "next")
			return err == nil, nil // the process may not be ready yet
		}); err != nil {
			return err
		}
		out, err := s.run(ctx, "flags", "history", flag, "--output", "json")
		if err != nil {
			return err
		}
		var history struct {
			Changes []struct{ After struct{ Value string } }
		}
		if err := json.Unmarshal([]byte(out), &history); err != nil {
			return fmt.Errorf("decode the output of flags history: %w", err)
		}
		var have []string
		for _, c := range history.Changes {
			have = append(have, c.After.Value)
		}
		if strings.Join(have, " ") != strings.Join(want, " ") {
			return fmt.Errorf("the history of flag %s has the values %q, want %q", flag, have, want)
		}
		return nil
	}
}
