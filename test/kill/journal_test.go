package kill

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// journal keeps the outcomes of a run on disk, so that a stopped run can resume with the rows that
// are not green yet. It belongs to one binary, because another one may behave differently.
type journal struct{ path string }

// journalEntry is an outcome as a line of the journal.
type journalEntry struct {
	Row, Verdict, Reason, Note                       string
	Acknowledged, Unknown, Lost, Doubled, OutOfOrder int
	Settled, Took                                    time.Duration
}

// openJournal opens the journal of the binary under test.
func openJournal() (journal, error) {
	f, err := os.Open(binary)
	if err != nil {
		return journal{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return journal{}, err
	}
	dir := root + "/.tools/kill"
	return journal{filepath.Join(dir, fmt.Sprintf("%x.jsonl", sum.Sum(nil)[:8]))}, os.MkdirAll(dir, 0o750)
}

// green returns the rows that were green.
func (j journal) green() (map[string]outcome, error) {
	b, err := os.ReadFile(j.path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	known := map[string]row{}
	for _, r := range rows() {
		known[r.name] = r
	}
	outcomes := map[string]outcome{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		var e journalEntry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the incomplete last line of a killed run
		}
		if r, there := known[e.Row]; there && e.Verdict == "green" {
			outcomes[e.Row] = outcome{row: r, verdict: e.Verdict, reason: e.Reason, note: e.Note,
				settled: e.Settled, took: e.Took,
				findings: findings{
					acknowledged: e.Acknowledged, unknown: e.Unknown,
					lost: e.Lost, doubled: e.Doubled, disordered: e.OutOfOrder,
				}}
		}
	}
	return outcomes, lines.Err()
}

// add appends an outcome.
func (j journal) add(o outcome) error {
	line, err := json.Marshal(journalEntry{
		Row: o.row.name, Verdict: o.verdict, Reason: o.reason, Note: o.note, Settled: o.settled, Took: o.took,
		Acknowledged: o.acknowledged, Unknown: o.unknown, Lost: o.lost, Doubled: o.doubled, OutOfOrder: o.disordered,
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
