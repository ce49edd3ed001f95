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
	reason  string // why it is not green
	note    string // additional remarks
	findings
	different bool          // millrace verify has found a difference
	settled   time.Duration // time from the repair until every side was equal
	took      time.Duration
}

// stage is a system on which rows run one after the other. It starts with the first row that needs
// it, and again after a red row.
type stage struct {
	start  func(context.Context, string) (*system, error)
	now    *system
	played int   // rows on the current system
	err    error // it could not be started, and will not be tried again
}

// rowsPerSystem limits the rows on one system. Each row checks everything that it and the rows
// before it have written. On two processors, that took a minute after twenty rows.
const rowsPerSystem = 8

var (
	embedded  = &stage{start: func(ctx context.Context, dir string) (*system, error) { return startEmbedded(ctx, dir) }}
	smallDisk = &stage{start: startSmallDisk}
	realOnes  = &stage{start: startReal}
	stages    = []*stage{embedded, smallDisk, realOnes}
)

// system returns the system, and starts one if necessary. The processes outlive the row.
func (g *stage) system(t *testing.T) (*system, error) {
	t.Helper()
	if g.played == rowsPerSystem {
		if err := g.strike(); err != nil {
			t.Log("stop the system: ", err)
		}
	}
	if g.now == nil && g.err == nil {
		dir, err := os.MkdirTemp(scratch, "system-") //nolint:usetesting // it outlives the row
		if err != nil {
			t.Fatal(err)
		}
		g.now, err = g.start(context.WithoutCancel(t.Context()), dir)
		if errors.Is(err, process.ErrMissing) && os.Getenv("MILLRACE_REQUIRE_SERVERS") == "" || errors.Is(err, errUnavailable) {
			g.err = err
		} else if err != nil {
			return nil, fmt.Errorf("start the system: %w", err)
		}
	}
	return g.now, g.err
}

// strike ends the system, if there is one.
func (g *stage) strike() error {
	if g.now == nil {
		return nil
	}
	s := g.now
	g.now, g.played = nil, 0
	return s.end()
}

// whole reports whether every row is wanted: by the flag, or because rows are named.
func whole() bool { return *full || strings.Contains(runPattern(), "/") }

// TestMatrix runs the rows of each system one after the other. The embedded default and the real
// servers have nothing in common, so their rows run in parallel. A red row is reported, and the
// rows after it continue on a new system.
func TestMatrix(t *testing.T) {
	type act struct {
		stage *stage
		rows  []row
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
	var playing sync.WaitGroup
	for _, acts := range [][]act{{{embedded, embeddedRows()}, {smallDisk, diskRows()}}, {{realOnes, realRows()}}} {
		playing.Go(func() {
			for _, a := range acts {
				for _, r := range wanted(a.rows) {
					mu.Lock()
					_, known := outcomes[r.name]
					mu.Unlock()
					if known {
						continue
					}
					t.Run(r.name, func(t *testing.T) {
						o := a.stage.play(t, r)
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
			}
		})
	}
	playing.Wait()
	if !*write && (!*full || len(outcomes) != total) {
		return
	}
	var inOrder []outcome
	for _, r := range rows() {
		if o, played := outcomes[r.name]; played {
			inOrder = append(inOrder, o)
		}
	}
	if err := report(inOrder, total); err != nil {
		t.Error(err)
	}
}

// rows returns all wanted rows, in the order of the report.
func rows() []row { return wanted(slices.Concat(realRows(), embeddedRows(), diskRows())) }

func wanted(rows []row) []row {
	return slices.DeleteFunc(rows, func(r row) bool { return !r.quick && !whole() || *only != "" && r.step.role != *only })
}

// play runs one row. After a red row the system is ended, because its data is wrong for good.
func (g *stage) play(t *testing.T, r row) (o outcome) {
	t.Helper()
	begun := time.Now()
	defer func() { o.took = time.Since(begun) }()
	s, err := g.system(t)
	switch {
	case g.err != nil:
		return outcome{row: r, verdict: "skipped", reason: err.Error()}
	case err != nil:
		return outcome{row: r, verdict: "red", reason: err.Error()}
	}
	o = s.try(t.Context(), r)
	g.played++
	if o.verdict == "red" {
		for _, role := range s.roles {
			t.Logf("log of %s:\n%s", role.name, role.logTail())
		}
		if err := g.strike(); err != nil {
			t.Log("stop the system: ", err)
		}
	}
	return o
}

// try puts the system under load, breaks it as the row says, waits until it has settled, and checks
// everything.
func (s *system) try(ctx context.Context, r row) outcome {
	o := outcome{row: r, verdict: "green"}
	s.ledger.begin()
	s.note = ""
	traffic := startLoad(s.door.addr)
	err := s.flows(ctx, 40)
	imported := make(chan error, 1)
	if r.year && err == nil {
		go func() { imported <- s.importYear(ctx) }()
	} else {
		imported <- nil
	}
	if err == nil {
		err = r.fault(ctx, s)
	}
	mended := time.Now()
	if err == nil {
		err = s.flows(ctx, 100)
	}
	err = errors.Join(err, traffic.end(), <-imported, s.failed())
	if err == nil {
		err = s.verify(ctx)
		o.different = errors.Is(err, errDifferent)
		o.settled = time.Since(mended)
	}
	found, auditErr := s.audit(ctx)
	o.findings, o.note = *found, s.note
	if err == nil && r.check != nil {
		err = r.check(ctx, s)
	}
	if err = errors.Join(err, auditErr, found.wrong()); err != nil {
		o.verdict, o.reason = "red", err.Error()
	}
	return o
}

// yearStep is the number of further lines of the real year that a row imports.
const yearStep = 2000

// importYear runs the importer on the real year up to a line. Commands of earlier rows are answered
// as before.
func (s *system) importYear(ctx context.Context) error {
	if _, err := os.Stat(*year); errors.Is(err, fs.ErrNotExist) {
		s.note = "without the real year, which is not on this machine"
		return nil
	}
	s.yearLines += yearStep
	cmd := exec.CommandContext(ctx, binary, "import", "online-retail", *year, "--addr", s.door.addr, "--limit", strconv.Itoa(s.yearLines),
		"--rejects", filepath.Join(s.dir, "rejects.csv"), "--output", "json")
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import of the real year: %w: %s", err, last(string(out)))
	}
	return nil
}

func (o outcome) line() string {
	text := fmt.Sprintf("%s %s: %d acknowledged, %d unknown, %d lost, %d doubled, %d out of order, settled in %.1f s, took %.1f s",
		o.verdict, o.row.name, o.acknowledged, o.unknown, o.lost, o.doubled, o.disordered, o.settled.Seconds(), o.took.Seconds())
	for _, more := range []string{o.note, strings.TrimSpace(o.reason)} {
		if more != "" {
			text += "; " + more
		}
	}
	return text
}
