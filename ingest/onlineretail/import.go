// Package onlineretail turns the lines of the UCI data set "Online Retail", the books of a real
// shop's year, into the commands that the shop would have issued, and sends them to a running
// Millrace.
//
// What is planned depends on the file alone, and so do the ids and idempotency keys of what is
// sent: an import that was killed is resumed by running it again, and running it once more changes
// nothing.
package onlineretail

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/client"
)

// Config describes what to import, and where to.
type Config struct {
	Path        string          // of the Parquet file
	BaseURL     string          // of the server: "http://127.0.0.1:7400"
	Client      []client.Option // token and TLS, where the server asks for them
	Limit       int             // lines of the file to import; 0 means all. A later import with a higher limit continues.
	RejectsPath string          // of the CSV file of lines that were not imported, one line each; none if empty
	Concurrency int             // commands under way at most; 0 means 64
	Patience    time.Duration   // with a server that is away; 0 means a minute
	Progress    func(Progress)  // called as lines get done, by one goroutine at a time; may be nil
}

// Progress says how far an import is.
type Progress struct {
	RowsRead  int64 // and done with: accepted or rejected
	RowsTotal int64 // to be read
	Rejected  int64 // of RowsRead
	Commands  int64 // answered
	Replayed  int64 // of Commands: had been answered by an earlier import
}

// The window is how much of the file is planned and sent at a time, and bounds the memory that an
// import takes.
const windowRows = 16_384

const (
	defaultConcurrency = 64
	defaultPatience    = time.Minute
)

// Import imports a file and says what became of its lines. An error wraps ErrFile where the file is
// at fault and client.ErrUnreachable where the server was away for too long; the summary then tells
// how far the import came, and the same call continues from there.
func Import(ctx context.Context, cfg Config) (Summary, error) {
	start := time.Now()
	cfg.Concurrency = cmp.Or(cfg.Concurrency, defaultConcurrency)
	server := client.New(cfg.BaseURL, cmp.Or(cfg.Patience, defaultPatience), cfg.Client...)
	defer server.Close()
	im := &importer{Config: cfg, server: server, planner: newPlanner(), summary: newSummary()}
	err := im.run(ctx)
	im.summary.Elapsed = time.Since(start)
	if errors.Is(err, client.ErrUnreachable) {
		err = fmt.Errorf("%w; run the import again once the server is back: it goes on where it stopped", err)
	}
	if err != nil {
		return im.summary, fmt.Errorf("import of %s: %w", cfg.Path, err)
	}
	return im.summary, im.summary.check()
}

type importer struct {
	Config
	server  *client.Client
	planner *planner
	rejects *rejectsFile

	mu       sync.Mutex // guards what follows
	progress Progress
	summary  Summary
	refused  []reject // by the server, in this window
}

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
		if r.number%windowRows == 0 || r.number == total {
			if err := im.send(ctx, im.planner.end(r.number, r.number == total)); err != nil {
				return fmt.Errorf("%d of %d lines are done: %w", im.progress.RowsRead, total, err)
			}
		}
	}
	return nil
}

// send sends a window's commands and writes its rejects.
func (im *importer) send(ctx context.Context, w window) error {
	for _, r := range w.rejects {
		im.summary.reject(r)
	}
	im.progress.RowsRead += int64(len(w.rejects))
	im.progress.Rejected += int64(len(w.rejects))
	for _, stage := range [][]command{w.groundwork, w.orders} {
		if err := im.sendAll(ctx, stage); err != nil {
			return err
		}
	}
	if im.Progress != nil { // its last lines may have been rejects
		im.Progress(im.progress)
	}
	rejects := append(w.rejects, im.refused...)
	im.refused = nil
	return im.rejects.write(rejects)
}

// sendAll sends commands of many streams at once, and those of one stream in order.
func (im *importer) sendAll(ctx context.Context, commands []command) error {
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
				im.account(c, o)
			}
			return nil
		})
	}
	return group.Wait()
}

// account books the outcome of a command.
func (im *importer) account(c command, o outcome) {
	im.mu.Lock()
	defer im.mu.Unlock()
	name := client.Name(c.request)
	if o.refused != "" {
		im.summary.Refused[name+": "+o.refused]++
	} else {
		im.summary.Commands[name]++
	}
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
