package kill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// outcome is the result of a row.
type outcome struct {
	row     row
	verdict string // green, red or skipped
	reason  string // for not being green
	note    string // a remark for the report
	findings
	different bool          // millrace verify found a difference
	settled   time.Duration // time from the repair until every side was equal
	took      time.Duration
}

// testbed is a system on which rows run one after the other. It starts with the first row that
// needs it, and again after a red row.
type testbed struct {
	start   func(context.Context, string) (*system, error)
	now     *system
	rowsRun int   // rows on the current system
	err     error // the system could not be started; it is not tried again
}

// rowsPerSystem limits the rows on one system. Each row checks everything that it and the rows
// before it have written. On two processors, that took a minute after twenty rows.
const rowsPerSystem = 8

var (
	embedded = &testbed{start: func(ctx context.Context, dir string) (*system,
		error) {
		return startEmbedded(ctx, dir)
	}}
	smallDisk   = &testbed{start: startSmallDisk}
	realServers = &testbed{start: startReal}
	testbeds    = []*testbed{embedded, smallDisk, realServers}
)

// system returns the system, and starts one if necessary. The processes outlive the row.
func (b *testbed) system(t *testing.T) (*system, error) {
	t.Helper()
	process.DependOnSource(t, root)
	if b.rowsRun == rowsPerSystem {
		if err := b.stop(); err != nil {
			t.Log("stop the system: ", err)
		}
	}
	if b.now == nil && b.err == nil {
		dir, err := os.MkdirTemp(scratch, "system-") //nolint:usetesting // it outlives the row
		if err != nil {
			t.Fatal(err)
		}
		b.now, err = b.start(context.WithoutCancel(t.Context()), dir)
		missing := errors.Is(err, process.ErrMissing) && os.Getenv("MILLRACE_REQUIRE_SERVERS") == ""
		if missing || errors.Is(err, errUnavailable) {
			b.err = err
		} else if err != nil {
			return nil, fmt.Errorf("start the system: %w", err)
		}
	}
	return b.now, b.err
}

// stop stops the system, if it is running.
func (b *testbed) stop() error {
	if b.now == nil {
		return nil
	}
	s := b.now
	b.now, b.rowsRun = nil, 0
	return s.end()
}

// allRows reports whether rows outside the quick part may run: with the flag, or if -run names
// rows.
func allRows() bool { return *full || strings.Contains(runPattern(), "/") }

// TestMatrix runs the rows of each system one after the other. The embedded default and the real
// servers have nothing in common, so all rows run on both in parallel, which saves an hour. The quick
// part has few pauses to save, and runs beside other tests. A red row is reported, and the rows after
// it continue on a new system.
func TestMatrix(t *testing.T) {
	type batch struct {
		testbed *testbed
		rows    []row
	}
	var mu sync.Mutex // guards outcomes
	outcomes, total := map[string]outcome{}, len(rows())
	var kept journal
	if *full {
		var err error
		if kept, err = openJournal(); err != nil {
			t.Fatal(err)
		}
		before, err := kept.green()
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(outcomes, before)
		if len(before) > 0 {
			fmt.Printf("%d of %d rows were green in an earlier run of this binary\n", len(before), total)
		}
	}
	var running sync.WaitGroup
	for _, batches := range [][]batch{
		{{embedded, embeddedRows()}, {smallDisk, diskRows()}},
		{{realServers, realRows()}},
	} {
		run := func() {
			for _, a := range batches {
				for _, r := range selected(a.rows) {
					mu.Lock()
					_, known := outcomes[r.name]
					mu.Unlock()
					if known {
						continue
					}
					t.Run(r.name, func(t *testing.T) {
						o := a.testbed.run(t, r)
						mu.Lock()
						outcomes[r.name] = o
						if *full {
							if err := kept.add(o); err != nil {
								t.Error(err)
							}
						}
						fmt.Printf("row %d of %d: %s\n", len(outcomes), total, o.line())
						mu.Unlock()
						switch o.verdict {
						case "skipped":
							t.Skip(o.reason)
						case "red":
							t.Error(o.reason)
						}
					})
				}
				if a.testbed == realServers {
					continue // TestMatrixDetectsDisabledGuards needs them
				}
				if err := a.testbed.stop(); err != nil { // even an idle system takes time from the others
					t.Error("stop the system: ", err)
				}
			}
		}
		if allRows() {
			running.Go(run)
		} else {
			run()
		}
	}
	running.Wait()
	if !*write && (!*full || len(outcomes) != total) {
		return
	}
	var inOrder []outcome
	for _, r := range rows() {
		if o, done := outcomes[r.name]; done {
			inOrder = append(inOrder, o)
		}
	}
	if err := report(inOrder, total); err != nil {
		t.Error(err)
	}
}

// rows returns the selected rows, in the order of the report.
func rows() []row { return selected(slices.Concat(realRows(), embeddedRows(), diskRows())) }

// selected returns those of the rows that the flags select.
func selected(rows []row) []row {
	return slices.DeleteFunc(rows, func(r row) bool {
		return !r.quick && !allRows() || *only != "" && r.step.role != *only
	})
}

// run runs one row. It stops the system after a red row, because its data remains wrong.
func (b *testbed) run(t *testing.T, r row) (o outcome) {
	t.Helper()
	begun := time.Now()
	defer func() { o.took = time.Since(begun) }()
	s, err := b.system(t)
	switch {
	case b.err != nil:
		return outcome{row: r, verdict: "skipped", reason: err.Error()}
	case err != nil:
		return outcome{row: r, verdict: "red", reason: err.Error()}
	}
	o = s.runRow(t.Context(), r)
	b.rowsRun++
	if o.verdict == "red" {
		for _, role := range s.roles {
			t.Logf("log of %s:\n%s", role.name, role.logTail())
		}
		if err := b.stop(); err != nil {
			t.Log("stop the system: ", err)
		}
	}
	return o
}

// runRow puts the system under load, breaks it as the row says, waits until it has settled, and
// checks every side.
func (s *system) runRow(ctx context.Context, r row) outcome {
	o := outcome{row: r, verdict: "green"}
	s.ledger.begin()
	s.note = ""
	traffic := startLoad(s.recorder.addr)
	endVisits := func() error { return nil }
	if r.step.role == "tracking" {
		endVisits = s.startVisits(ctx).end
	}
	err := s.awaitCommands(ctx, 40)
	imported := make(chan error, 1)
	if r.year && err == nil {
		go func() { imported <- s.importYear(ctx) }()
	} else {
		imported <- nil
	}
	if err == nil {
		err = r.fault(ctx, s)
	}
	repaired := time.Now()
	if err == nil {
		err = s.awaitCommands(ctx, 100)
	}
	err = errors.Join(err, traffic.end(), endVisits(), <-imported, s.failed())
	if err == nil {
		err = s.verify(ctx)
		o.different = errors.Is(err, errDifferent)
		o.settled = time.Since(repaired)
	}
	found, auditErr := s.audit(ctx)
	o.findings, o.note = *found, s.note
	if err == nil && r.check != nil {
		err = r.check(ctx, s)
	}
	if err = errors.Join(err, auditErr, found.err()); err != nil {
		o.verdict, o.reason = "red", err.Error()
	}
	return o
}

// yearStep is the number of further lines of the real year that a row imports.
const yearStep = 2000

// importYear runs the importer on the real year, up to a line that advances with each row. The
// importer sends the lines of earlier rows again, and gets the same answers.
func (s *system) importYear(ctx context.Context) error {
	if _, err := os.Stat(*year); errors.Is(err, fs.ErrNotExist) {
		s.note = "without the real year: its file does not exist, set -kill.year"
		return nil
	}
	s.yearLines += yearStep
	cmd := exec.CommandContext(ctx, binary, "import", "online-retail", *year, "--addr", s.recorder.addr,
		"--limit", strconv.Itoa(s.yearLines), "--rejects", filepath.Join(s.dir, "rejects.csv"), "--output", "json")
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import the real year: %w: %s", err, tail(string(out)))
	}
	return nil
}

// line describes the outcome in one line of the log.
func (o outcome) line() string {
	text := fmt.Sprintf("%s %s: %d acknowledged, %d unknown, %d lost, %d doubled, %d out of order, "+
		"settled in %.1f s, took %.1f s",
		o.verdict, o.row.name, o.acknowledged, o.unknown, o.lost, o.doubled, o.disordered,
		o.settled.Seconds(), o.took.Seconds())
	for _, more := range []string{o.note, strings.TrimSpace(o.reason)} {
		if more != "" {
			text += "; " + more
		}
	}
	return text
}
