package streams

import (
	"log/slog"
	"testing"
	"time"
)

// A fault is listed until the log has been applied again, counted from an inspection that began
// after the last report.
func TestFaults(t *testing.T) {
	t.Parallel()
	w, quiet := NewWatermarks(), slog.New(slog.DiscardHandler)
	f := w.Faults()
	if f.Any() || len(f.List()) != 0 {
		t.Error("a new sink has faults")
	}
	f.Report(quiet, "view/v1", "positions", "garbage")
	f.Report(quiet, "view/v1", "documents", "two are damaged")
	f.Report(quiet, "view/v1", "documents", "another")
	list := f.List()
	if len(list) != 2 || list[0].Part != "documents" || list[0].Reason != "two are damaged" ||
		list[1].Part != "positions" {
		t.Errorf("%v", list)
	}
	remaining := func(begun time.Time) int {
		w.clearFaults(quiet, "view/v1", []string{"t"}, begun)
		return len(f.List())
	}
	later := time.Now().Add(time.Hour)
	if remaining(later) != 2 {
		t.Error("faults were removed before the ends of the log are known")
	}
	w.set("t", 0, Applied{Next: 3})
	w.setEnds("t", map[int32]int64{0: 5})
	if remaining(later) != 2 {
		t.Error("faults were removed before the log is applied")
	}
	w.set("t", 0, Applied{Next: 5})
	if remaining(list[1].Since) != 2 {
		t.Error("an inspection that began before the report removed faults")
	}
	if remaining(later) != 0 || f.Any() {
		t.Error("faults remain after the log was applied again")
	}
}
