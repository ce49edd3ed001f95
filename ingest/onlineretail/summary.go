package onlineretail

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Summary counts the lines of a file and the commands by their outcome. Read is the sum of Accepted
// and Rejected.
type Summary struct {
	Read int64 `json:"read"`
	// Accepted lines are part of a command that the server accepted, now or in an earlier import.
	Accepted int64            `json:"accepted"`
	Rejected int64            `json:"rejected"`
	Reasons  map[string]int64 `json:"reasons"` // rejected lines, by reason

	Commands map[string]int64 `json:"commands"` // accepted commands, by name: "PlaceOrder"
	Replayed int64            `json:"replayed"` // of Commands: accepted in an earlier import
	Refused  map[string]int64 `json:"refused"`  // refused commands, by name and reason

	Elapsed time.Duration `json:"elapsed_nanoseconds"`
}

// newSummary returns a summary without lines.
func newSummary() Summary {
	return Summary{Reasons: map[string]int64{}, Commands: map[string]int64{}, Refused: map[string]int64{}}
}

// reject counts a rejected line.
func (s *Summary) reject(r reject) {
	s.Rejected++
	s.Reasons[r.reason]++
}

// check returns an error if a line is neither accepted nor rejected.
func (s *Summary) check() error {
	if s.Accepted+s.Rejected != s.Read {
		return fmt.Errorf("accepted %d and rejected %d of %d lines: this is a bug in the import",
			s.Accepted, s.Rejected, s.Read)
	}
	return nil
}

// String returns a report for the terminal. Counts are sorted from high to low.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d lines read = %d accepted + %d rejected, in %v\n",
		s.Read, s.Accepted, s.Rejected, s.Elapsed.Round(time.Millisecond))
	table := func(title string, counts map[string]int64) {
		if len(counts) == 0 {
			return
		}
		fmt.Fprintln(&b, title)
		names := slices.SortedFunc(maps.Keys(counts), func(x, y string) int {
			return cmp.Or(cmp.Compare(counts[y], counts[x]), cmp.Compare(x, y))
		})
		for _, name := range names {
			fmt.Fprintf(&b, "%10d  %s\n", counts[name], name)
		}
	}
	table("rejected:", s.Reasons)
	table(fmt.Sprintf("commands, %d of them from an earlier import:", s.Replayed), s.Commands)
	table("commands that the server refused:", s.Refused)
	return b.String()
}

// rejectsFile is a CSV file with the columns row, invoice, stock code and reason.
type rejectsFile struct {
	file *os.File // nil if no file is wanted
	csv  *csv.Writer
}

// createRejects creates the file, unless path is empty. An existing file is replaced: each import
// reads the lines from the beginning, so it finds all rejects again.
func createRejects(path string) (*rejectsFile, error) {
	if path == "" {
		return &rejectsFile{}, nil
	}
	f, err := os.Create(path) //nolint:gosec // the user's path
	if err != nil {
		return nil, fmt.Errorf("create the rejects file: %w", err)
	}
	return &rejectsFile{f, csv.NewWriter(f)}, nil
}

// write writes the rejects of one window, ordered by row.
func (f *rejectsFile) write(rejects []reject) error {
	if f.file == nil {
		return nil
	}
	slices.SortFunc(rejects, func(a, b reject) int { return cmp.Compare(a.row, b.row) })
	for _, r := range rejects {
		if err := f.csv.Write([]string{strconv.FormatInt(r.row, 10), r.invoice, r.code, r.reason}); err != nil {
			return fmt.Errorf("write the rejects file: %w", err)
		}
	}
	f.csv.Flush()
	if err := f.csv.Error(); err != nil {
		return fmt.Errorf("write the rejects file: %w", err)
	}
	return nil
}

// close closes the file, if there is one.
func (f *rejectsFile) close() error {
	if f.file == nil {
		return nil
	}
	if err := f.file.Close(); err != nil {
		return fmt.Errorf("close the rejects file: %w", err)
	}
	return nil
}
