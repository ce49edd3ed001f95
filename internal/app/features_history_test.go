package app

import (
	"errors"
	"testing"

	"github.com/millrace/millrace/features/history"
)

// TestFaultsOfFeatures: only a fault of a table that waits for a server is transient.
func TestFaultsOfFeatures(t *testing.T) {
	t.Parallel()
	reason := errors.New("it is full")
	for _, stopped := range []bool{true, false} {
		f := historyFault(history.Fault{Table: "facts_a", Reason: reason, Stopped: stopped})
		if f.GetTable() != "features.facts_a" || f.GetReason() != "it is full" || f.GetTransient() == stopped ||
			(f.GetRemedy() == remedyHistory) != stopped {
			t.Errorf("stopped %v: %v", stopped, f)
		}
	}
}
