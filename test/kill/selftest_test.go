package kill

import (
	"fmt"
	"slices"
	"testing"
)

// tries bounds the runs until a row is red. One run may not be enough: about every second
// redelivery contains an order line that an unguarded view adds twice.
const tries = 6

// TestMatrixDetectsDisabledGuards tests the matrix itself: with a guard disabled, the row that
// depends on it must become red. First, the row must be green with the guard.
func TestMatrixDetectsDisabledGuards(t *testing.T) {
	for _, c := range []struct {
		off     string // the switch that disables the guard
		testbed *testbed
		row     string
		rows    []row
	}{
		// A killed view reads the records since its saved positions again. Without the guard it
		// adds their order lines twice.
		{"view.noguard", realServers, "views/orderstatus before positions/kill", realRows()},
		{"lake.nofence", realServers, "lake/orders_events about to commit/zombie", realRows()},
	} {
		t.Run(c.off, func(t *testing.T) {
			at := slices.IndexFunc(c.rows, func(r row) bool { return r.name == c.row })
			if at < 0 {
				t.Fatalf("there is no row %s", c.row)
			}
			r := c.rows[at]
			c.testbed.rowsRun = 0
			green := c.testbed.run(t, r)
			fmt.Printf("guard enabled: %s\n", green.line())
			if green.verdict == "skipped" {
				t.Skip(green.reason)
			}
			if green.verdict != "green" {
				t.Fatal(green.reason)
			}
			s := c.testbed.now
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
				c.testbed.rowsRun = 0 // stay on this system, which has the switch
				red = c.testbed.run(t, r)
				fmt.Printf("%s enabled: %s\n", c.off, red.line())
				if red.verdict == "red" {
					break
				}
			}
			if red.verdict != "red" {
				t.Fatalf("the row is still green with %s: it does not detect the missing guard", c.off)
			}
			if red.lost+red.doubled+red.disordered == 0 && !red.different {
				t.Errorf("the row is red, but not because of the system's data: %s", red.reason)
			}
		})
	}
}
