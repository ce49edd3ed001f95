package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// TestExternalTopics checks what the README says of external topics: `lake land` lands them in
// tables, and SQL reads these, now and as of a moment.
func TestExternalTopics(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		ports, err := process.FreePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprint("127.0.0.1:", ports[0])
		externalTopics(t, []string{"MILLRACE_KAFKA_LISTEN=" + at}, at, "MILLRACE_KAFKA_BROKERS="+at)
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		env := servers.env(t)
		brokers, err := servers.all.Kafka.Start() // already started
		if err != nil {
			t.Fatal(err)
		}
		externalTopics(t, env, brokers)
		registered(t, env, brokers)
	})
}

// logs is a topic of JSON values.
const logs = "e2e-logs"

func externalTopics(t *testing.T, env []string, brokers string, landing ...string) {
	data := filepath.Join(t.TempDir(), "data")
	s := upOn(t, env, data, "127.0.0.1:0")
	s.ready()
	produce := producer(t, brokers, logs)
	land := func(args ...string) {
		t.Helper()
		landed(t, append(env, landing...), data,
			append([]string{"--topic", logs, "--json", "--json-times", "--until-end"}, args...)...)
	}

	produce(`{"level":"info","took":12,"at":"2026-11-01T10:00:00Z","user":{"id":7}}`, `{"level":"warn","took":3}`,
		`not JSON`)
	land()
	rows := s.rows("SELECT level, took, user.id AS id, _offset FROM foreign.e2e_logs ORDER BY _offset")
	if got := fmt.Sprint(rows); got != "[map[_offset:0 id:7 level:info took:12] map[_offset:1 id:<nil> level:warn took:3]]" {
		t.Errorf("the first rows: %s", got)
	}
	produce(`{"level":"error","took":2.5,"code":"E7"}`)
	land() // continues, with one more column
	land() // has nothing left to do
	rows = s.rows("SELECT level, took_double, code FROM `foreign.e2e_logs` ORDER BY _offset")
	if got := fmt.Sprint(rows); got != "[map[code:<nil> level:info took_double:<nil>] map[code:<nil> level:warn took_double:<nil>] map[code:E7 level:error took_double:2.5]]" {
		t.Errorf("the rows: %s", got)
	}

	asOf := func(moment, query string) (rows []map[string]any, errOut string) {
		t.Helper()
		var stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), binary, "sql", "--addr", s.addr, "--output", "json", "--as-of",
			moment, query)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("as of %s: %v: %s%s", moment, err, out, stderr.Bytes())
		}
		return decodeRows(t, string(out)), stderr.String()
	}
	const count = "SELECT count() AS n FROM foreign.e2e_logs"
	for moment, want := range map[string]string{logs + "/0=4": "3", logs + "/0=3": "2", logs + "/0=0": "0", "0s": "3"} {
		rows, errOut := asOf(moment, count)
		if len(rows) != 1 || fmt.Sprint(rows[0]["n"]) != want || !strings.Contains(errOut,
			`"table":"foreign.e2e_logs"`) && !strings.Contains(errOut, `"table": "foreign.e2e_logs"`) {
			t.Errorf("as of %s: %v, %s; want %s", moment, rows, errOut, want)
		}
	}
	if rows, errOut := asOf("0s",
		"SELECT count() AS n FROM orders_current"); len(rows) != 1 || number(rows[0]["n"]) == 0 || !strings.Contains(errOut, "orders_current") {
		t.Errorf("a table of state, as of now: %v, %s", rows, errOut)
	}
	s.verified() // the external tables make no side differ
	s.stop()
}

// registered lands a topic of Avro values with a schema registry.
func registered(t *testing.T, env []string, brokers string) {
	var url string
	for _, setting := range env {
		if after, ok := strings.CutPrefix(setting, "MILLRACE_REGISTRY_URL="); ok {
			url = after
		}
	}
	schema, err := json.Marshal(map[string]string{"schema": `{"type":"record","name":"Paid","fields":[{"name":"order","type":"string"},{"name":"cents","type":"long"}]}`})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(url+"/subjects/e2e-paid-value/versions", "application/vnd.schemaregistry.v1+json",
		bytes.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	var made struct{ ID uint32 }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || made.ID == 0 {
		t.Fatalf("the registry: %s, %v", resp.Status, err)
	}
	value := string([]byte{0, byte(made.ID >> 24), byte(made.ID >> 16), byte(made.ID >> 8), byte(made.ID)}) + "\x04o1" + "\xc8\x01" // a string of two bytes, and 100
	producer(t, brokers, "e2e-paid")(value, "no frame")
	data := filepath.Join(t.TempDir(), "data")
	landed(t, env, data, "--topic", "e2e-paid", "--registry", url, "--table", "e2e.paid", "--until-end")

	cmd := exec.CommandContext(t.Context(), binary, "sql", "--data", data, "--output", "json",
		`SELECT "order", cents FROM e2e.paid`)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(decodeRows(t, string(out))); got != "[map[cents:100 order:o1]]" {
		t.Errorf("the rows: %s", got)
	}
}

// landed runs `lake land` until it ends.
func landed(t *testing.T, env []string, data string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"lake", "land", "--data", data}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("millrace lake land %v: %v\n%s", args, err, out)
	}
}

// producer creates a topic of one partition, and returns a function that writes values to it.
func producer(t *testing.T, brokers, topic string) func(values ...string) {
	t.Helper()
	config := kafka.Config{Brokers: brokers, ClientID: "e2e", Replicas: 1}
	admin, err := kafka.NewAdmin(config)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.EnsureTopics(t.Context(), kafka.Topic{Name: topic, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewProducer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return func(values ...string) {
		t.Helper()
		for _, v := range values {
			if err := p.Produce(context.WithoutCancel(t.Context()),
				kafka.Record{Topic: topic, Partition: 0, Value: []byte(v)}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
