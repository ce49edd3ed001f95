// Package prometheus starts a Prometheus with its Alertmanager for tests, on loopback and in temporary
// folders. Alertmanager sends its notifications to a webhook of the test.
//
// The zero Server starts with Start. Query evaluates an expression, Alerts lists the firing alerts, and
// Promtool is the program that checks rules.
package prometheus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// Config is what a Prometheus reads and evaluates.
type Config struct {
	Job     string   // name of the job
	Targets []string // HOST:PORT of the processes to scrape
	Rules   []string // rule files
	Webhook string   // URL to which Alertmanager posts; empty: no Alertmanager runs
}

const (
	// interval is that of evaluations and notifications. Tests wait for several of them.
	interval = time.Second
	// scrapeInterval is longer than a process needs for a scrape while one of its servers hangs.
	scrapeInterval = 4 * time.Second
)

// Server is a Prometheus, and the Alertmanager that it notifies.
type Server struct {
	url          string
	alertmanager process.Server

	process.Server
}

// Start starts both. If they are not installed, the test is skipped or fails; see process.SkipOrFail.
// They stop with the test.
func (s *Server) Start(tb testing.TB, c Config) {
	tb.Helper()
	tb.Cleanup(func() {
		if err := errors.Join(s.Stop(), s.alertmanager.Stop()); err != nil {
			tb.Error(err)
		}
	})
	if err := s.start(context.Background(), c); err != nil {
		process.SkipOrFail(tb, "Prometheus", err)
	}
}

// Promtool returns the program, which has the version of the server.
func Promtool() (string, error) { return program("promtool") }

// program returns the path of an installed program.
func program(name string) (string, error) {
	dir, err := process.InstallDir("prometheus")
	return filepath.Join(dir, "usr", "bin", name), err
}

// start starts Alertmanager, if there is a webhook, and then Prometheus.
func (s *Server) start(ctx context.Context, c Config) error {
	ports, err := process.FreePorts(2)
	if err != nil {
		return err
	}
	alertmanager := ""
	if c.Webhook != "" {
		alertmanager = fmt.Sprintf("127.0.0.1:%d", ports[1])
		if err := s.startAlertmanager(ctx, alertmanager, c.Webhook); err != nil {
			return err
		}
	}
	path, err := program("prometheus")
	if err != nil {
		return err
	}
	dir, err := s.Folder("millrace-prometheus-")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "prometheus.json") // JSON is YAML
	if err := write(file, c.prometheus(alertmanager)); err != nil {
		return err
	}
	s.url = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	return s.Launch(ctx, process.Command{
		Name: "Prometheus", Path: path, Dir: dir,
		Args: []string{
			"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"),
			"--web.listen-address=" + strings.TrimPrefix(s.url, "http://"), "--rules.alert.resend-delay=" + interval.String(),
			"--enable-feature=exemplar-storage",
		},
		Ready: process.HTTPReady(s.url+"/-/ready", http.StatusOK), StartTimeout: time.Minute,
	})
}

// startAlertmanager starts an Alertmanager that groups nothing and notifies at once.
func (s *Server) startAlertmanager(ctx context.Context, addr, webhook string) error {
	path, err := program("prometheus-alertmanager")
	if err != nil {
		return err
	}
	dir, err := s.alertmanager.Folder("millrace-alertmanager-")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "alertmanager.json")
	if err := write(file, map[string]any{
		"route": map[string]any{
			"receiver": "test", "group_by": []string{"..."},
			"group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h",
		},
		"receivers": []any{map[string]any{
			"name": "test", "webhook_configs": []any{map[string]any{"url": webhook, "send_resolved": true}},
		}},
	}); err != nil {
		return err
	}
	return s.alertmanager.Launch(ctx, process.Command{
		Name: "Alertmanager", Path: path, Dir: dir,
		Args: []string{
			"--config.file=" + file,
			"--storage.path=" + filepath.Join(dir, "data"),
			"--web.listen-address=" + addr,
			"--cluster.listen-address=",
		},
		Ready: process.HTTPReady("http://"+addr+"/-/ready", http.StatusOK), StartTimeout: time.Minute,
	})
}

// prometheus returns Prometheus' configuration.
func (c Config) prometheus(alertmanager string) map[string]any {
	targets := func(all ...string) []any { return []any{map[string]any{"targets": all}} }
	config := map[string]any{
		"global": map[string]any{
			"scrape_interval": scrapeInterval.String(), "scrape_timeout": scrapeInterval.String(),
			"evaluation_interval": interval.String(),
		},
		"rule_files":     c.Rules,
		"scrape_configs": []any{map[string]any{"job_name": c.Job, "static_configs": targets(c.Targets...)}},
	}
	if alertmanager != "" {
		config["alerting"] = map[string]any{"alertmanagers": []any{map[string]any{"static_configs": targets(alertmanager)}}}
	}
	return config
}

// write writes a configuration.
func write(file string, config any) error {
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// Sample is an element of the result of a query.
type Sample struct {
	Labels map[string]string `json:"metric"`
	Value  []any             `json:"value"` // time and value, as Prometheus has it
}

// Query evaluates an expression now, and returns the elements of its result.
func (s *Server) Query(ctx context.Context, expression string) ([]Sample, error) {
	var result struct{ Result []Sample }
	err := s.get(ctx, "/api/v1/query?query="+url.QueryEscape(expression), &result)
	return result.Result, err
}

// Alerts returns the names of the alerts that fire, by the value of a label.
func (s *Server) Alerts(ctx context.Context, label string) (map[string][]string, error) {
	var result struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := s.get(ctx, "/api/v1/alerts", &result); err != nil {
		return nil, err
	}
	firing := map[string][]string{}
	for _, a := range result.Alerts {
		if a.State == "firing" {
			firing[a.Labels["alertname"]] = append(firing[a.Labels["alertname"]], a.Labels[label])
		}
	}
	return firing, nil
}

// get reads the data of an answer of the API.
func (s *Server) get(ctx context.Context, path string, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	answer := struct {
		Error string
		Data  any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %s: %w", path, res.Status, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// client keeps no idle connections, because their goroutines would outlive the tests.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
