package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// role keeps one role of the system running, as a scheduler of containers would: it replaces a
// process that ends.
type role struct {
	name     string
	args     []string
	env      []string
	dir      string
	recorder *recorder // points to the role's process if the role takes commands

	mu          sync.Mutex
	current     *instance
	starts      int
	stopped     bool
	err         error // why it could not be restarted
	supervisors sync.WaitGroup
}

// instance is one process of a role.
type instance struct {
	*process.Process
	name        string
	addr, admin string // its listeners
	tracking    string // its listener for tracking clients, if it has the role tracking
}

// Only a hang should exceed these bounds, also on a machine that is busy with a recovery and with
// tests of other packages.
const (
	startTimeout = 4 * time.Minute // until a process is ready
	stopTimeout  = 2 * time.Minute // until a process has ended
	callTimeout  = time.Minute     // of a request, or of a server that makes no progress
)

// start starts the role and keeps it running until stop.
func (r *role) start(ctx context.Context) error {
	i, err := r.launch(ctx)
	if err != nil {
		return err
	}
	r.adopt(i)
	return nil
}

// adopt makes a process the role's own. Commands go to it, and when it ends another one replaces
// it.
func (r *role) adopt(i *instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = i
	r.starts++
	if r.recorder != nil {
		r.recorder.forwardTo(r, i.addr)
	}
	r.supervisors.Go(func() { r.supervise(i) })
}

// supervise waits for the end of a process. It starts the next one if the process is still the
// role's own.
func (r *role) supervise(i *instance) {
	<-i.Ended()
	r.mu.Lock()
	ours := r.current == i && !r.stopped
	r.mu.Unlock()
	if !ours {
		return
	}
	for deadline := time.Now().Add(startTimeout); ; {
		next, err := r.launch(context.Background())
		if err == nil {
			r.mu.Lock()
			gone := r.stopped
			r.mu.Unlock()
			if gone {
				_ = next.Kill()
				return
			}
			r.adopt(next)
			return
		}
		if time.Now().After(deadline) {
			r.mu.Lock()
			r.err = fmt.Errorf("restart role %s: %w", r.name, err)
			r.mu.Unlock()
			return
		}
	}
}

// launch starts a process of the role on its own ports.
func (r *role) launch(ctx context.Context) (*instance, error) {
	ports, err := process.FreePorts(3)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return nil, err
	}
	i := &instance{name: r.name, addr: loopback(ports[0]), admin: loopback(ports[1]), tracking: loopback(ports[2])}
	i.Process, err = process.Start(ctx, process.Command{
		Name: "millrace " + r.name, Path: binary, Args: r.args, Dir: r.dir, StartTimeout: startTimeout,
		Env: append([]string{"MILLRACE_ADDR=" + i.addr, "MILLRACE_ADMIN_ADDR=" + i.admin,
			"MILLRACE_TRACKING_ADDR=" + i.tracking}, r.env...),
		Ready: func(ctx context.Context) error { return i.get(ctx, "/healthz") },
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// stop ends the role's process without a replacement.
func (r *role) stop() error {
	r.mu.Lock()
	r.stopped = true
	current := r.current
	r.mu.Unlock()
	var err error
	if current != nil {
		err = current.Stop(stopTimeout)
	}
	r.supervisors.Wait()
	return err
}

// now returns the current process of the role, and how many were started so far.
func (r *role) now() (*instance, int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current, r.starts, r.err
}

// replace starts a second process beside the role's own one. The old process keeps running, but is
// not the role's own any more.
func (r *role) replace(ctx context.Context) (old *instance, err error) {
	old, _, _ = r.now()
	next, err := r.launch(ctx)
	if err != nil {
		return nil, err
	}
	r.adopt(next)
	return old, nil
}

// get requests a path of the process's admin listener, and expects status 200.
func (i *instance) get(ctx context.Context, path string) error {
	_, err := i.call(ctx, http.MethodGet, path, "")
	return err
}

// call sends a request to the process's admin listener, and returns the body of the answer.
func (i *instance) call(ctx context.Context, method, path, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+i.admin+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s of %s: %s: %s", method, path, i.name, response.Status, answer)
	}
	return answer, err
}

// arm arms a failpoint of the process. The spec is "POINT=ACTION@N".
func (i *instance) arm(ctx context.Context, spec string) error {
	_, err := i.call(ctx, http.MethodPost, "/debug/failpoints", spec)
	return err
}

// fired reports whether an armed failpoint has fired.
func (i *instance) fired(ctx context.Context, point string) (bool, error) {
	answer, err := i.call(ctx, http.MethodGet, "/debug/failpoints", "")
	if err != nil {
		return false, err
	}
	var points map[string]struct{ Fired bool }
	if err := json.Unmarshal(answer, &points); err != nil {
		return false, err
	}
	return points[point].Fired, nil
}

// frozen reports whether the kernel has stopped the process.
func (i *instance) frozen() (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i.PID()))
	if err != nil {
		return false, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "T"), nil
}

func (i *instance) resume() error { return i.Signal(syscall.SIGCONT) }

func (i *instance) ended() bool {
	select {
	case <-i.Ended():
		return true
	default:
		return false
	}
}

// logTail returns the end of a role's log, to explain a red row.
func (r *role) logTail() string {
	const most = 3 << 10
	log, _ := os.ReadFile(filepath.Join(r.dir, "log")) // best effort
	return string(log[max(0, len(log)-most):])
}

// await returns nil once the condition holds. It returns an error if that does not happen in time,
// or if the condition fails.
func await(ctx context.Context, what string, within time.Duration, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("timed out after %v waiting for: %s", within, what), context.Cause(ctx))
		}
	}
}
