package kill

import (
	"fmt"
	"slices"
	"testing"
)

// tries is needed because only every second redelivery contains a line that is added twice. It
// depends on the commands just before the kill.
const tries = 6

// TestMatrixGoesRed tests the matrix itself: with a guard switched off, the row that depends on it
// must become red. The same row runs with the guard first.
func TestMatrixGoesRed(t *testing.T) {
	for _, c := range []struct {
		off   string // the switch that disables the guard
		stage *stage
		row   string
		rows  []row
	}{
		// Records since the last saved positions are redelivered, and order lines that are added
		// twice remain.
		{"view.noguard", realOnes, "views/orderstatus before positions/kill", realRows()},
		{"lake.nofence", realOnes, "lake/orders_events about to commit/zombie", realRows()},
	} {
		t.Run(c.off, func(t *testing.T) {
			at := slices.IndexFunc(c.rows, func(r row) bool { return r.name == c.row })
			if at < 0 {
				t.Fatalf("there is no row %s", c.row)
			}
			r := c.rows[at]
			c.stage.played = 0
			green := c.stage.play(t, r)
			fmt.Printf("guards on:        %s\n", green.line())
			if green.verdict == "skipped" {
				t.Skip(green.reason)
			}
			if green.verdict != "green" {
				t.Fatal(green.reason)
			}
			s := c.stage.now
			role := s.role(r.step.role)
			i, _, err := role.now()
			if err == nil {
				err = i.arm(t.Context(), c.off+"=on")
			}
			if err != nil {
				t.Fatal(err)
			}
			role.env = append(role.env, "MILLRACE_FAILPOINTS="+c.off+"=on") // for processes that are started later
			var red outcome
			for range tries {
				c.stage.played = 0 // stay on this system, which has the switch
				red = c.stage.play(t, r)
				fmt.Printf("%s on:  %s\n", c.off, red.line())
				if red.verdict == "red" {
					break
				}
			}
			if red.verdict != "red" {
				t.Fatalf("with %s the row must be red", c.off)
			}
			if red.lost+red.doubled+red.disordered == 0 && !red.different {
				t.Errorf("it is red for another reason than what the system holds: %s", red.reason)
			}
		})
	}
}
