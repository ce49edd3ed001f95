package history

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// TestEventStore runs the clients of two processes on one store, kills one process after the other,
// and checks the history.
func TestEventStore(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		checkStore(t, victimJob{SQLite: filepath.Join(t.TempDir(), "events.db")}, nil)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		cutter := startCutter(t, cluster.ConnString(t))
		checkStore(t, victimJob{Postgres: cutter.conn, Schema: "history"}, cutter)
	})
}

const (
	processes        = 2
	clientsOfProcess = 5
	enoughStored     = 100 // appends by killed processes
)

func checkStore(t *testing.T, job victimJob, cutter *cutter) {
	run := &storeRun{job: job}
	run.job.Number = clientsOfProcess
	var victims [processes]*running
	for i := range victims {
		victims[i] = run.start(t)
	}
	end, kills := time.Now().Add(duration(4*time.Second)), 0
	for last := end.Add(patience); time.Now().Before(end) || ((kills < 2 || run.stored() < enoughStored) &&
		time.Now().Before(last)); kills++ {
		<-time.After(time.Duration(200+rand.IntN(600)) * time.Millisecond) // time for the next kill
		i := rand.IntN(len(victims))
		select {
		case <-victims[i].serves:
		case <-victims[i].ended:
			t.Fatalf("a client process exited early: %v", victims[i].end(true))
		}
		run.take(t, victims[i], true)
		victims[i] = run.start(t)
	}
	for _, v := range victims {
		run.take(t, v, false)
	}
	if cutter != nil {
		cutter.stop()
		job.Postgres = cluster.ConnString(t)
	}
	store, err := job.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if run.history.contents, err = readContents(t.Context(), store, run.history.operations); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for _, finding := range run.history.check(true) {
		t.Error(finding)
	}
	run.logSummary(t, kills, cutter, time.Since(begun))
}

// storeRun collects the history of a run.
type storeRun struct {
	job     victimJob
	started int
	history storeHistory
	unheard []storeCall // sent under keys, but not answered before their process ended
}

func (r *storeRun) start(t *testing.T) *running {
	t.Helper()
	job := r.job
	job.First, job.Resend = r.started*clientsOfProcess, r.unheard
	r.started++
	r.unheard = nil
	v, err := startVictim(job)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// take ends a victim and adds its operations to the history.
func (r *storeRun) take(t *testing.T, v *running, kill bool) {
	t.Helper()
	if err := v.end(kill); err != nil {
		t.Fatalf("client process: %v", err)
	}
	for _, op := range v.ops {
		r.history.operations = append(r.history.operations, op)
		if op.Return == 0 && op.Asked.Kind == appendBatch && op.Asked.Key != "" {
			r.unheard = append(r.unheard, op.Asked)
		}
		var at, round int
		if _, err := fmt.Sscanf(op.Asked.Shelf, shelfName, &at, &round); err != nil {
			t.Fatal(err)
		}
		r.job.Rounds[at] = max(r.job.Rounds[at], round)
	}
	r.history.followers = append(r.history.followers, follower{v.job.Follow, v.saw})
	if len(v.saw) > 0 { // the next one continues from here, like a relay
		r.job.Follow = v.saw[len(v.saw)-1].Position
	}
}

// stored returns how many acknowledged appends have been collected.
func (r *storeRun) stored() (n int) {
	for _, op := range r.history.operations {
		if op.Answer.Outcome == stored {
			n++
		}
	}
	return n
}

func (r *storeRun) logSummary(t *testing.T, kills int, cutter *cutter, took time.Duration) {
	counts := map[string]int{}
	saw := 0
	for _, op := range r.history.operations {
		outcome := string(op.Answer.Outcome)
		if op.Answer.Outcome == lost {
			outcome = "unknown"
		}
		counts[string(op.Asked.Kind)+" "+outcome]++
	}
	for _, f := range r.history.followers {
		saw += len(f.saw)
	}
	cuts := 0
	if cutter != nil {
		cuts = int(cutter.cuts.Load())
	}
	t.Logf("%d operations (%v), %d events, %d seen by followers, %d kills, %d connections cut, checked in %v",
		len(r.history.operations), counts, len(r.history.contents.all), saw, kills, cuts, took.Round(time.Millisecond))
	if counts["append stored"] < enoughStored || counts["append conflict"] == 0 || counts["append unknown"] == 0 || kills == 0 {
		t.Errorf("too few operations for a meaningful history: %v", counts)
	}
}
