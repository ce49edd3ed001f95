package tracking_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/process"
)

// victimEnv makes this test binary an intake that can be killed: "BROKERS ADDR MOMENT". At the moment
// "arrival", it kills itself when a request arrives, and at "answer" when the events of one are
// durable and the client is to be told.
const victimEnv = "MILLRACE_TRACKING_VICTIM"

func init() {
	if text := os.Getenv(victimEnv); text != "" {
		fmt.Fprintln(os.Stderr, beVictim(strings.Fields(text)))
		os.Exit(1)
	}
}

// beVictim serves the API until the process is killed.
func beVictim(args []string) error {
	known, err := tracking.ParseSources([]byte("node: {key: node-write-key}\npython: {key: python-write-key}\nbrowser: {key: browser-write-key}\n"))
	if err != nil {
		return err
	}
	i, err := tracking.New(tracking.Config{
		Kafka:   kafka.Config{Brokers: args[0], ClientID: "victim"},
		Sources: known, Requests: 64, IDs: 10_000, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", args[1])
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- i.Run(context.Background()) }()
	api, moment := i.Handler(), args[2]
	var answers atomic.Int64
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || !i.Available() {
			api.ServeHTTP(w, r)
			return
		}
		// A few requests succeed first, so that clients make progress.
		last := answers.Load() >= 5
		if last && moment == "arrival" {
			die()
		}
		api.ServeHTTP(&lastWords{w, last && moment == "answer"}, r)
		answers.Add(1)
	})}
	go func() { ended <- s.Serve(l) }()
	return <-ended
}

// lastWords kills the process instead of sending an answer of 200.
type lastWords struct {
	http.ResponseWriter
	kill bool
}

// WriteHeader implements http.ResponseWriter.
func (l *lastWords) WriteHeader(status int) {
	if l.kill && status == http.StatusOK {
		die()
	}
	l.ResponseWriter.WriteHeader(status)
}

// die kills this process at once.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// victim starts an intake, which listens on addr.
func victim(t *testing.T, brokers, addr, moment string) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), process.Command{
		Name: "intake", Path: os.Args[0], Dir: t.TempDir(), Env: []string{victimEnv + "=" + strings.Join([]string{brokers, addr, moment}, " ")},
		Ready: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			return res.Body.Close()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// program is a client in a process of its own.
type program struct {
	name string
	cmd  *exec.Cmd
	out  *bytes.Buffer
	done chan error
}

// launch starts a program, which ends with the test.
func launch(t *testing.T, name, dir, path string, args ...string) *program {
	t.Helper()
	p := &program{name: name, cmd: exec.CommandContext(t.Context(), path, args...), out: &bytes.Buffer{}, done: make(chan error, 1)}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.out, p.out
	// A group of its own, because a browser has processes of its own.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.done <- p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		if t.Failed() {
			t.Logf("output of %s:\n%s", p.name, p.out)
		}
	})
	return p
}

// TestClientsOfSegment has Segment's own clients send events while the intake is killed: when a
// request arrives, when it is to be answered, and at any time. Each event is on the log once.
func TestClientsOfSegment(t *testing.T) {
	t.Parallel()
	clients, err := process.InstallDir("segment")
	if err != nil {
		process.SkipOrFail(t, "segment", err)
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		process.SkipOrFail(t, "chromium", fmt.Errorf("chromium: %w", process.ErrMissing))
	}
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	k := broker(t)
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprint("127.0.0.1:", ports[0])
	// The page is of another origin than the intake.
	site := http.NewServeMux()
	site.Handle("/umd/", http.StripPrefix("/umd/", http.FileServer(http.Dir(
		filepath.Join(clients, "node_modules", "@segment", "analytics-next", "dist", "umd")))))
	site.Handle("/", http.FileServer(http.Dir(testdata)))
	pages := httptest.NewServer(site)
	t.Cleanup(pages.Close)

	const count, pause = 150, 20
	intake := victim(t, k.Brokers, addr, "arrival")
	n, ms := fmt.Sprint(count), fmt.Sprint(pause)
	programs := []*program{
		launch(t, "analytics-node", clients, "node", filepath.Join(testdata, "send.js"), "http://"+addr, "node-write-key", n, ms),
		launch(t, "analytics-python", clients, filepath.Join(clients, "python", "bin", "python"), filepath.Join(testdata, "send.py"),
			"http://"+addr, "python-write-key", n, ms),
	}
	launch(t, "chromium", t.TempDir(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-extensions", "--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), pages.URL+"/send.html#"+url.Values{
			"apiHost": {addr + "/v1"}, "writeKey": {"browser-write-key"}, "count": {n}, "pause": {ms},
		}.Encode())

	w := &world{kafka: k}
	onLog := func() int64 {
		admin, err := kafka.NewAdmin(k)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		ends, err := admin.EndOffsets(t.Context(), "millrace.behavior")
		if err != nil {
			t.Fatal(err)
		}
		return ends[0] + ends[1]
	}
	for kills, moment := range []string{"answer", "outside", "arrival", "answer", "outside", "none"} {
		before := onLog()
		if kills%3 == 2 { // an intake that does not kill itself
			polltest.Until(t, "the intake has written events", func() bool { return onLog() > before+10 || onLog() == 3*count })
			if err := intake.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-intake.Ended():
		case <-time.After(time.Minute):
			t.Fatal("the intake is not killed: the clients send nothing")
		}
		intake = victim(t, k.Brokers, addr, moment)
	}
	polltest.Until(t, "every event is on the log", func() bool { return onLog() >= 3*count })
	for _, p := range programs {
		if err := <-p.done; err != nil || !strings.Contains(p.out.String(), "done") {
			t.Errorf("%s ended with %v: %s", p.name, err, p.out)
		}
	}
	times := map[string]int{} // how often each event is on the log
	for _, e := range w.events(t) {
		var properties struct{ N *int }
		if err := json.Unmarshal([]byte(e.GetProperties()), &properties); err != nil || properties.N == nil {
			t.Fatal(errors.Join(err, fmt.Errorf("event %v", e)))
		}
		times[fmt.Sprintf("%s %d", e.GetSource(), *properties.N)]++
	}
	for _, source := range []string{"node", "python", "browser"} {
		for i := range count {
			if name := fmt.Sprintf("%s %d", source, i); times[name] != 1 {
				t.Errorf("event %s is on the log %d times", name, times[name])
			}
		}
	}
	if err := intake.Kill(); err != nil {
		t.Fatal(err)
	}
}
