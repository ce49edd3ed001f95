//go:build !failpoints

package failpoint

import "net/http"

// Hit is called at a step. It is nil unless the step is to fail.
func Hit(string) error { return nil }

// On reports whether a switch is on.
func On(string) bool { return false }

// Handler serves arming by HTTP; nil if there are no failpoints.
func Handler() http.Handler { return nil }
