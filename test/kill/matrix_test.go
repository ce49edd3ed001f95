package kill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// outcome is what a row gave.
type outcome struct {
	row     row
	verdict string // green, red or skipped
	reason  string // why it is not green
	findings
	settled time.Duration // from the mending to the moment at which every side was equal
	took    time.Duration
}

// TestMatrix runs the rows one after the other. A red row is told, and does not hide those after it: they go on with a
// system that is new.
func TestMatrix(t *testing.T) {
	matrix := []struct {
		system string
		start  func(context.Context, string) (*system, error)
		rows   []row
	}{
		{"embedded", func(ctx context.Context, dir string) (*system, error) { return startEmbedded(ctx, dir) }, embeddedRows()},
	}
	total, n := 0, 0
	for _, part := range matrix {
		for _, r := range part.rows {
			if *full || r.quick {
				total++
			}
		}
	}
	var outcomes []outcome
	for _, part := range matrix {
		var s *system
		for _, r := range part.rows {
			if !*full && !r.quick {
				continue
			}
			n++
			t.Run(r.name, func(t *testing.T) {
				begun := time.Now()
				if s == nil {
					var err error
					if s, err = part.start(t.Context(), folder(t)); err != nil {
						t.Fatalf("start the system: %v", err)
					}
				}
				o := s.try(t.Context(), r)
				o.took = time.Since(begun)
				outcomes = append(outcomes, o)
				fmt.Printf("row %d of %d: %s\n", n, total, o.line())
				if o.verdict == "red" {
					t.Error(o.reason)
					for _, role := range s.roles {
						t.Logf("log of %s:\n%s", role.name, role.logTail())
					}
					if err := s.end(); err != nil {
						t.Log("stop the system: ", err)
					}
					s = nil
				}
			})
		}
		if s != nil {
			if err := s.end(); err != nil {
				t.Error("stop the system: ", err)
			}
		}
	}
	if *write || *full && len(outcomes) == total {
		if err := report(outcomes); err != nil {
			t.Error(err)
		}
	}
}

// folder is one that outlives the subtest which needs it first.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(binary), "system-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// try puts the system under load, breaks it as the row says, lets it settle and looks at everything.
func (s *system) try(ctx context.Context, r row) outcome {
	o := outcome{row: r, verdict: "green"}
	s.ledger.begin()
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
		o.settled = time.Since(mended)
	}
	found, auditErr := s.audit(ctx)
	o.findings = *found
	if err = errors.Join(err, auditErr, found.wrong()); err != nil {
		o.verdict, o.reason = "red", err.Error()
	}
	return o
}

// yearStep is how many more lines of the real year a row imports.
const yearStep = 2000

// importYear lets the importer send the real year up to a line; what rows before it have sent is answered as before.
func (s *system) importYear(ctx context.Context) error {
	if _, err := os.Stat(*year); err != nil {
		return nil // it is not everywhere; the generated load is
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
	if o.reason != "" {
		text += ": " + strings.TrimSpace(o.reason)
	}
	return text
}

func report([]outcome) error { return nil }
