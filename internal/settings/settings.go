// Package settings reports settings of servers that endanger data.
//
// Millrace creates topics, buckets and indexes with the right settings. If they existed before, or
// were changed since, a setting may break a guarantee: a compacted topic loses events, and a Redis
// that evicts keys loses documents. Each client checks the settings of its server and returns
// Faults. Processes check at start and periodically.
package settings

import (
	"errors"
	"fmt"
)

// Fault is a setting that is not as it must be.
type Fault struct {
	Resource string // "topic millrace.orders"
	Setting  string // "cleanup.policy"
	Value    string
	Want     string
	Effect   string // what comes of it
	Remedy   string // a command, where there is one
	// Fatal faults lose or falsify data: a process does not start with one. Others are told.
	Fatal bool
}

// String returns the fault as one sentence.
func (f Fault) String() string {
	return fmt.Sprintf("%s: %s is %q, not %s: %s; %s", f.Resource, f.Setting, f.Value, f.Want, f.Effect, f.Remedy)
}

// Refuse returns an error that names all fatal faults; nil if there is none.
func Refuse(faults []Fault) error {
	var errs []error
	for _, f := range faults {
		if f.Fatal {
			errs = append(errs, errors.New(f.String()))
		}
	}
	return errors.Join(errs...)
}
