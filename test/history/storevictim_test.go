package history

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
)

// victimEnv is an environment variable that turns the test binary into a process of clients that
// will be killed.
const victimEnv = "MILLRACE_TEST_VICTIM"

// victimJob is the task of such a process, and the first line of its standard input. It works until
// its standard input ends.
type victimJob struct {
	SQLite   string // path, or
	Postgres string // connection and
	Schema   string
	First    int
	Number   int
	Rounds   [shelvesAtOnce]int
	Resend   []storeCall
	Follow   event.Position // from this position on
}

// open opens the store. It retries if its first connection is cut.
func (j victimJob) open(ctx context.Context) (s eventstore.Store, err error) {
	for range 20 {
		if s, err = j.tryOpen(ctx); err == nil || ctx.Err() != nil {
			break
		}
		pause(ctx)
	}
	return s, err
}

func (j victimJob) tryOpen(ctx context.Context) (eventstore.Store, error) {
	if j.SQLite != "" {
		return sqlite.Open(ctx, j.SQLite, event.Order)
	}
	return postgres.Open(ctx, j.Postgres, event.Order, postgres.WithSchema(j.Schema))
}

// victimLine is a line of the process's output: a call before it is made, an answer, or what its
// follower saw.
type victimLine struct {
	Op  *storeOp `json:",omitempty"`
	Saw []place  `json:",omitempty"`
}

// victim runs such a process.
func victim() (err error) {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var job victimJob
	if err := json.Unmarshal(line, &job); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	store, err := job.open(ctx)
	if ctx.Err() != nil {
		return nil // asked to end before it started
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var mu sync.Mutex
	write := func(l victimLine) error {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		_, err = os.Stdout.Write(append(b, '\n'))
		return err
	}
	clients := &storeClients{
		store: store, first: job.First, number: job.Number, rounds: job.Rounds, resend: job.Resend,
		record: func(op storeOp) error { return write(victimLine{Op: &op}) },
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return clients.run(ctx) })
	g.Go(func() error {
		return follow(ctx, store, job.Follow, func(p []place) error { return write(victimLine{Saw: p}) })
	})
	return g.Wait()
}

// running is a victim from the test's point of view.
type running struct {
	job    victimJob
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	ended  chan struct{} // closed once all its output is read
	err    error         // of reading
	ops    map[string]storeOp
	saw    []place
	serves chan struct{} // closed at the first answer
}

func startVictim(job victimJob) (*running, error) {
	r := &running{job: job, cmd: exec.CommandContext(context.Background(), os.Args[0]),
		ended: make(chan struct{}), ops: map[string]storeOp{}, serves: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), victimEnv+"=1")
	r.cmd.Stderr = os.Stderr
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(r.ended)
		r.err = r.read(out)
	}()
	if err := json.NewEncoder(r.stdin).Encode(job); err != nil {
		return nil, errors.Join(err, r.cmd.Process.Kill(), r.cmd.Wait())
	}
	return r, nil
}

// read reads the victim's output until it ends.
func (r *running) read(out io.Reader) error {
	lines := bufio.NewReader(out)
	serves := false
	for {
		b, err := lines.ReadBytes('\n')
		// An unfinished line: the call was not made, or the answer was not noticed.
		if err != nil {
			return nil //nolint:nilerr // the end
		}
		var l victimLine
		if err := json.Unmarshal(b, &l); err != nil {
			_, _ = io.Copy(io.Discard, out)
			return fmt.Errorf("read the victim's output %q: %w", b, err)
		}
		r.saw = append(r.saw, l.Saw...)
		if l.Op == nil {
			continue
		}
		r.ops[l.Op.ID] = *l.Op
		if !serves && l.Op.Return != 0 {
			serves = true
			close(r.serves)
		}
	}
}

// end kills the victim, or lets it end normally, and waits until all its output is read.
func (r *running) end(kill bool) error {
	if kill {
		if err := r.cmd.Process.Kill(); err != nil {
			return err
		}
	}
	err := r.stdin.Close()
	<-r.ended
	err = errors.Join(err, r.err)
	if ended := r.cmd.Wait(); !kill {
		err = errors.Join(err, ended)
	}
	return err
}
