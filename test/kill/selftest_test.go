package kill

import (
	"fmt"
	"slices"
	"testing"
)

// Whether a redelivery has a line to add twice is up to what the clients did in the moment before
// the kill: about every second has one.
const tries = 6

// TestMatrixGoesRed is the matrix's own test: with a guard of the system switched off, the row that
// rests on it must go red. The same row with the guard on goes before.
func TestMatrixGoesRed(t *testing.T) {
	for _, c := range []struct {
		off   string // the switch
		stage *stage
		row   string
		rows  []row
	}{
		// What was applied since the positions were saved is delivered again, and order lines that
		// are added twice stay.
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
			role.env = append(role.env, "MILLRACE_FAILPOINTS="+c.off+"=on") // of those that are started later
			var red outcome
			for range tries {
				c.stage.played = 0 // on this system, which has the switch
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
