// Package settings describes server settings that endanger data.
//
// Millrace creates topics, buckets and indexes with the right settings. If they existed before, or
// were changed later, a setting may break a guarantee: a compacted topic loses events, and a Redis
// server that evicts keys loses documents. Each client checks the settings of its server and
// returns Faults. Processes check at start and periodically. Refuse decides whether a process may
// start.
package settings

import (
	"errors"
	"fmt"
)

// Fault is a setting that endangers data.
type Fault struct {
	Resource string // for example "topic millrace.orders"
	Setting  string // for example "cleanup.policy"
	Value    string // the value found
	Want     string // the values allowed, for people
	Effect   string // what the setting causes
	Remedy   string // what to do, a command if there is one
	// Fatal means that data is lost or falsified, so a process must not start. Other faults are
	// only reported.
	Fatal bool
}

// String returns the fault as one line.
func (f Fault) String() string {
	return fmt.Sprintf("%s: %s is %q, not %s: %s; %s", f.Resource, f.Setting, f.Value, f.Want, f.Effect, f.Remedy)
}

// Refuse returns an error with all fatal faults, or nil if there is none.
func Refuse(faults []Fault) error {
	var errs []error
	for _, f := range faults {
		if f.Fatal {
			errs = append(errs, errors.New(f.String()))
		}
	}
	return errors.Join(errs...)
}
