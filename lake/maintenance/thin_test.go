package maintenance

import (
	"testing"
	"time"

	"github.com/apache/iceberg-go/table"
)

// Two days of commits every second, thinned out as they are made. What remains is bounded: the
// newest states, one per minute of the last hour, and one per hour of the last day.
func TestThinBoundsHistory(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 11, 22, 0, 0, 30, 0, time.UTC)
	const commits, look = 2 * 24 * 3600, 8
	tagged := map[int64]bool{5: true}
	var kept []table.Snapshot
	now := begin
	for i := range int64(commits) {
		now = begin.Add(time.Duration(i) * time.Second)
		kept = append(kept, table.Snapshot{SnapshotID: i + 1, SequenceNumber: i + 1, TimestampMs: now.UnixMilli()})
		if i%look != 0 {
			continue
		}
		gone := map[int64]bool{}
		if ids := surplus(kept, tagged, now); len(ids) >= historyCut {
			for _, id := range ids {
				gone[id] = true
			}
		}
		left := kept[:0]
		for _, s := range kept {
			if !gone[s.SnapshotID] {
				left = append(left, s)
			}
		}
		kept = left
	}
	if n := len(kept); n > historyNewest+60+24+3+historyCut+look {
		t.Errorf("%d states are kept", n)
	}
	has := map[int64]bool{}
	minutes, hours := map[string]bool{}, map[string]bool{}
	for _, s := range kept {
		has[s.SnapshotID] = true
		at := time.UnixMilli(s.TimestampMs).UTC()
		minutes[at.Format("02 15:04")], hours[at.Format("02 15")] = true, true
	}
	for back := range int64(historyNewest) {
		if !has[commits-back] {
			t.Errorf("the state %d commits ago is gone", back)
		}
	}
	for back := time.Duration(0); back < historyHours; back += time.Minute {
		at := now.Add(-back)
		if back < historyMinutes && !minutes[at.Format("02 15:04")] || !hours[at.Format("02 15")] {
			t.Errorf("nothing is left of %v", at)
		}
	}
	if !has[5] {
		t.Error("a state with a tag is gone")
	}
}
