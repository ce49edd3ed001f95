//go:build !failpoints

package failpoint

import "net/http"

// Hit marks a step. It returns nil unless the step is to fail.
func Hit(string) error { return nil }

// On reports whether a switch is on.
func On(string) bool { return false }

// Handler returns nil: there are no failpoints to arm.
func Handler() http.Handler { return nil }
