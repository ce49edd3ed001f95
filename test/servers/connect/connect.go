// Package connect starts a private Kafka Connect worker with Iceberg's sink, on loopback and in a
// temporary folder. Benchmarks compare it with a lander, because it lands topics in Iceberg tables
// too.
//
// A Worker is one stand-alone Connect process. Connectors are created and deleted while it runs, by
// its REST API. A Sink describes one of them.
//
// A stand-alone worker keeps its connectors in memory, and forgets them when it ends. So a Worker
// remembers its sinks, and Restart creates them again. Positions are not lost: the sink keeps them
// in Kafka and in the table's snapshots.
package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// Worker is one Kafka Connect worker, which keeps its connectors in memory. Set its brokers and
// start it. Create, Delete and Restart must not run concurrently.
type Worker struct {
	Brokers string // "host:port,host:port"
	HeapMB  int    // of Java, allocated at the start; 0 means 1024

	// once makes the first call of Start the only one that starts something. Later calls return the
	// same error.
	once sync.Once
	err  error
	// home is the installation folder, java the java program, dir this worker's own folder, and
	// port that of its API.
	home  string
	java  string
	dir   string
	port  int
	sinks []Sink // those that Restart creates again

	process.Server
}

// URL starts the worker if necessary, and returns the address of its API. If it is not installed,
// the test is skipped or fails: see process.SkipOrFail.
func (w *Worker) URL(tb testing.TB) string {
	tb.Helper()
	process.SkipHeavy(tb, "Kafka Connect")
	url, err := w.Start()
	if err != nil {
		process.SkipOrFail(tb, "Kafka Connect", err)
	}
	return url
}

// Start starts the worker once, and returns the address of its API.
func (w *Worker) Start() (url string, err error) {
	w.once.Do(func() {
		if w.err = w.start(); w.err != nil {
			w.err = errors.Join(w.err, w.Stop())
		}
	})
	return w.url(), w.err
}

func (w *Worker) url() string { return fmt.Sprintf("http://127.0.0.1:%d", w.port) }

// start finds the programs, writes the configuration, and runs the worker. The port is chosen once,
// so it remains the same after a Restart.
func (w *Worker) start() error {
	var err error
	if w.java, err = exec.LookPath("java"); err != nil {
		return fmt.Errorf("java 17: %w", process.ErrMissing)
	}
	if w.home, err = process.InstallDir("connect"); err != nil {
		return err
	}
	if w.HeapMB == 0 {
		w.HeapMB = 1024
	}
	if w.dir, err = w.Folder("millrace-connect-"); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	w.port = ports[0]
	config := filepath.Join(w.dir, "worker.properties")
	if err := os.WriteFile(config, w.properties(), 0o600); err != nil {
		return err
	}
	return w.Launch(context.Background(), process.Command{
		Name: "Kafka Connect",
		Path: w.java,
		Args: []string{
			// With G1, Java's default on a server, because it is to be measured as it is usually
			// run.
			fmt.Sprintf("-Xms%dm", w.HeapMB), fmt.Sprintf("-Xmx%dm",
				w.HeapMB), "-XX:+UseG1GC", "-Djava.io.tmpdir=" + w.dir,
			"-Dlog4j2.level=WARN", "-cp", filepath.Join(w.home, "worker", "*"),
			"org.apache.kafka.connect.cli.ConnectStandalone", config,
		},
		Dir:   w.dir,
		Ready: process.HTTPReady(w.url()+"/connectors", http.StatusOK),
		// Some 10 seconds of work, most of it scanning the sink's jars.
		StartTimeout: 10 * time.Minute,
	})
}

// properties returns the worker's configuration file.
func (w *Worker) properties() []byte {
	return lines(map[string]string{
		"bootstrap.servers":         w.Brokers,
		"listeners":                 w.url(),
		"rest.advertised.host.name": "127.0.0.1",
		"plugin.path":               filepath.Join(w.home, "plugins"),
		// Scanning 100 MB of jars takes most of a start.
		"plugin.discovery":                        "service_load",
		"key.converter":                           "org.apache.kafka.connect.storage.StringConverter",
		"value.converter":                         "org.apache.kafka.connect.json.JsonConverter",
		"value.converter.schemas.enable":          "false",
		"offset.storage.file.filename":            filepath.Join(w.dir, "offsets"),
		"offset.flush.interval.ms":                "2000",
		"connector.client.config.override.policy": "All",
	})
}

// lines returns a properties file. The order of its lines is random, which is of no consequence.
func lines(properties map[string]string) []byte {
	var b bytes.Buffer
	for name, value := range properties {
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	return b.Bytes()
}

// Create creates a sink and returns once all its tasks run. The caller's deadline bounds the wait.
// A sink whose tasks do not start is not deleted, and Restart does not create it again.
func (w *Worker) Create(ctx context.Context, s Sink) error {
	body, err := json.Marshal(map[string]any{"name": s.Name, "config": s.config()})
	if err != nil {
		return err
	}
	if _, err := w.call(ctx, http.MethodPost, "/connectors", body); err != nil {
		return err
	}
	if err := w.awaitRunning(ctx, s); err != nil {
		return err
	}
	w.sinks = append(w.sinks, s)
	return nil
}

// Delete deletes a sink. Its tasks stop; its topics, consumer groups and table remain.
func (w *Worker) Delete(ctx context.Context, name string) error {
	for i, s := range w.sinks {
		if s.Name == name {
			w.sinks = append(w.sinks[:i:i], w.sinks[i+1:]...)
			break
		}
	}
	_, err := w.call(ctx, http.MethodDelete, "/connectors/"+name, nil)
	return err
}

// Restart starts the worker again with its sinks, and kills it first if it runs. The sinks resume
// from their committed offsets.
func (w *Worker) Restart(ctx context.Context) error {
	if err := w.Server.Restart(ctx); err != nil {
		return err
	}
	// Create adds each of them again.
	sinks := w.sinks
	w.sinks = nil
	for _, s := range sinks {
		if err := w.Create(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// Failed returns the error of a failed task of a sink, with its stack trace, or nil. A failed task
// does not restart by itself, and the connector stays "running" without it. So a benchmark that
// does not ask would wait for rows that never come.
func (w *Worker) Failed(ctx context.Context, name string) error {
	states, err := w.states(ctx, name)
	if err != nil {
		return err
	}
	for _, s := range states {
		if s.State == "FAILED" {
			return fmt.Errorf("connect: a task of %s failed: %s", name, s.Trace)
		}
	}
	return nil
}

// state is the state of a task: UNASSIGNED, RUNNING, PAUSED, FAILED and others. Trace is the stack
// trace of a failed one.
type state struct{ State, Trace string }

// states returns the states of a sink's tasks.
func (w *Worker) states(ctx context.Context, name string) ([]state, error) {
	body, err := w.call(ctx, http.MethodGet, "/connectors/"+name+"/status", nil)
	if err != nil {
		return nil, err
	}
	var status struct{ Tasks []state }
	if err := json.Unmarshal(body, &status); err != nil {
		return nil, fmt.Errorf("connect: status of %s: %w", name, err)
	}
	return status.Tasks, nil
}

// awaitRunning waits until all tasks of a sink run. It fails fast if a task fails or the worker
// exits.
func (w *Worker) awaitRunning(ctx context.Context, s Sink) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		states, err := w.states(ctx, s.Name) // an error if they are not known yet
		running := 0
		for _, state := range states {
			if state.State == "RUNNING" {
				running++
			}
		}
		if err == nil && running == s.Tasks {
			return nil
		}
		if err == nil {
			if err := w.Failed(ctx, s.Name); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-w.Ended():
			return fmt.Errorf("connect: the worker has ended\n%s", w.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("%d of %d tasks of %s run: %w\n%s", running, s.Tasks, s.Name,
				errors.Join(err, ctx.Err()), w.LogTail())
		}
	}
}

// httpClient keeps no idle connections, because their goroutines would outlive the tests.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// call sends a request to the worker's API and returns the answer's body. Any status from 300 on is
// an error with the body's text, because the worker explains its refusals there.
func (w *Worker) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.url()+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close() //nolint:errcheck // it has been read
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s", strings.TrimSpace(string(content)))
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %s %s: %s: %w", method, path, answer.Status, err)
	}
	return content, nil
}
