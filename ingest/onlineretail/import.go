// Package onlineretail imports the UCI data set "Online Retail", the sales of a real shop in one
// year. It turns the lines of the file into the commands that the shop would have issued, and sends
// them to a running Millrace.
//
// Import reads rows (file.go), classifies them (rules.go), plans commands for a window of rows at a
// time (plan.go) and sends them (issue.go). Summary counts the lines and commands by their outcome.
//
// Invariants:
//
//   - The plan depends on the file only, and so do the ids and idempotency keys of the commands. So
//     running the import again resumes one that was killed, and otherwise changes nothing.
//   - Each line is either accepted, as part of a command, or rejected with a reason.
package onlineretail

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/internal/client"
)

// Config configures an import.
type Config struct {
	Path    string          // of the Parquet file
	BaseURL string          // of the server, for example "http://127.0.0.1:7400"
	Client  []client.Option // token and TLS, if the server requires them
	// Limit is the number of lines to import. 0 means all. A later import with a higher limit
	// continues.
	Limit int
	// RejectsPath is where to write a CSV file of the rejected lines. If it is empty, none is
	// written.
	RejectsPath string
	Concurrency int            // maximum number of commands in flight; 0 means 64
	RetryFor    time.Duration  // how long to retry while the server is unavailable; 0 means 1 minute
	Progress    func(Progress) // called as lines are done, never concurrently; may be nil
}

// Progress describes how far an import has come.
type Progress struct {
	RowsRead  int64 // lines that are accepted or rejected
	RowsTotal int64 // lines to be read
	Rejected  int64 // of RowsRead
	Commands  int64 // commands that the server accepted or refused
	Replayed  int64 // of Commands: accepted in an earlier import
}

// windowRows is how many rows are planned and sent at a time. It bounds the memory of an import.
const windowRows = 16_384

const (
	defaultConcurrency = 64
	defaultRetryFor    = time.Minute
)

// Import imports a file. The error wraps ErrFile if the file is not usable, and
// client.ErrUnreachable if the server was unavailable for too long. After an error, the summary
// contains what was done, and another call resumes from there.
func Import(ctx context.Context, cfg Config) (Summary, error) {
	start := time.Now()
	cfg.Concurrency = cmp.Or(cfg.Concurrency, defaultConcurrency)
	server := client.New(cfg.BaseURL, cmp.Or(cfg.RetryFor, defaultRetryFor), cfg.Client...)
	defer server.Close()
	im := &importer{Config: cfg, server: server, planner: newPlanner(), summary: newSummary()}
	err := im.run(ctx)
	im.summary.Elapsed = time.Since(start)
	if errors.Is(err, client.ErrUnreachable) {
		err = fmt.Errorf("%w; run the import again when the server is available: it resumes where it stopped", err)
	}
	if err != nil {
		return im.summary, fmt.Errorf("import %s: %w", cfg.Path, err)
	}
	return im.summary, im.summary.check()
}

// Commands calls each with every command that Import would send for the file at path, in an order
// that satisfies the services: whatever a command refers to comes before it.
func Commands(ctx context.Context, path string, each func(request proto.Message) error) (err error) {
	src, err := open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	p := newPlanner()
	for r, err := range src.all() {
		if err != nil {
			return err
		}
		p.add(r)
		if r.number%windowRows != 0 && r.number != src.rows {
			continue
		}
		w := p.end(r.number, r.number == src.rows)
		for _, c := range slices.Concat(w.prerequisites, w.orders) {
			if err := each(c.request); err != nil {
				return err
			}
		}
	}
	return nil
}

// importer is the state of one import. One goroutine plans windows, and several send the commands
// of a window.
type importer struct {
	Config
	server  *client.Client
	planner *planner
	rejects *rejectsFile

	// mu protects the fields below while commands are in flight. Between windows, only the planning
	// goroutine uses them.
	mu       sync.Mutex
	progress Progress
	summary  Summary
	refused  []reject // lines of this window that the server refused
}

// run reads the file in windows. It plans a window and sends all its commands before it reads the
// next one, so an error leaves only the current window incomplete.
func (im *importer) run(ctx context.Context) (err error) {
	src, err := open(ctx, im.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if im.rejects, err = createRejects(im.RejectsPath); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.rejects.close()) }()

	total := src.rows
	if im.Limit > 0 {
		total = min(total, int64(im.Limit))
	}
	im.progress.RowsTotal = total
	for r, err := range src.all() {
		if err != nil {
			return err
		}
		if r.number > total {
			break
		}
		im.summary.Read++
		im.planner.add(r)
		// The window or the file ends here.
		if r.number%windowRows == 0 || r.number == total {
			if err := im.send(ctx, im.planner.end(r.number, r.number == total)); err != nil {
				return fmt.Errorf("stopped after %d of %d lines: %w", im.progress.RowsRead, total, err)
			}
		}
	}
	return nil
}

// send sends the commands of a window and writes its rejects. Orders are sent after the
// prerequisites, because they refer to them. The rejects of the plan and those of the server are
// written together, after the window is complete.
func (im *importer) send(ctx context.Context, w window) error {
	for _, r := range w.rejects {
		im.summary.reject(r)
	}
	im.progress.RowsRead += int64(len(w.rejects))
	im.progress.Rejected += int64(len(w.rejects))
	for _, stage := range [][]command{w.prerequisites, w.orders} {
		if err := im.sendAll(ctx, stage); err != nil {
			return err
		}
	}
	if im.Progress != nil { // the last lines of the window may be rejects, which no command reports
		im.Progress(im.progress)
	}
	rejects := append(w.rejects, im.refused...)
	im.refused = nil
	return im.rejects.write(rejects)
}

// sendAll sends the commands of different streams concurrently, and those of one stream in order.
// It stops at the first command that the server did not answer. A refused command is not an error.
// A stream is an aggregate, for example one product: its commands depend on each other.
func (im *importer) sendAll(ctx context.Context, commands []command) error {
	// One queue per stream keeps its commands in order. The index is the stream's queue.
	streams := map[string]int{}
	var queues [][]command
	for _, c := range commands {
		i, ok := streams[c.stream]
		if !ok {
			i = len(queues)
			streams[c.stream] = i
			queues = append(queues, nil)
		}
		queues[i] = append(queues[i], c)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(im.Concurrency)
	for _, queue := range queues {
		group.Go(func() error {
			for _, c := range queue {
				o, err := im.issue(ctx, c)
				if err != nil {
					return err
				}
				im.record(c, o)
			}
			return nil
		})
	}
	return group.Wait()
}

// record counts the result of a command. Many commands are in flight, so it is called concurrently.
func (im *importer) record(c command, o outcome) {
	im.mu.Lock()
	defer im.mu.Unlock()
	name := client.Name(c.request)
	if o.refused != "" {
		im.summary.Refused[name+": "+o.refused]++
	} else {
		im.summary.Commands[name]++
	}
	// The server accepts lines from the front. It refused the others with the command.
	for _, l := range c.lines[o.accepted:] {
		r := reject{l, o.refused}
		im.refused = append(im.refused, r)
		im.summary.reject(r)
	}
	im.summary.Accepted += int64(o.accepted)
	im.progress.RowsRead += int64(len(c.lines))
	im.progress.Rejected += int64(len(c.lines) - o.accepted)
	im.progress.Commands++
	if o.replayed {
		im.progress.Replayed++
		im.summary.Replayed++
	}
	if im.Progress != nil {
		im.Progress(im.progress)
	}
}
