// Package settings says what is wrong with the settings of the servers that the system runs on.
//
// Whoever makes a topic, a bucket or an index makes it with the right settings. Where it was there
// before, or was changed since, a setting may take away what the system counts on: a compacted
// topic forgets events, a Redis that evicts forgets documents. Each client looks for such settings
// of its server and answers with Faults; the process looks at start and from time to time.
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
