package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// run runs the command line and returns its output.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := execute(t.Context(), root)
	return out.String(), err
}

func TestMistypedCommands(t *testing.T) {
	for words, want := range map[string]string{
		"verfy":                  "verify",
		"stauts":                 "status",
		"lake tabels":            `"millrace lake tables"`,
		"lake lnad --json":       "",
		"import online-retial f": `"millrace import online-retail"`,
		"nonsense":               `unknown command "nonsense"`,
		"lake nonsense":          "millrace lake --help",
	} {
		_, err := run(t, strings.Fields(words)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error that says %s", words, err, want)
		}
	}
	if out, err := run(t, "lake"); err != nil || !strings.Contains(out, "tables") {
		t.Errorf("a group alone shows its help: %v, %s", err, out)
	}
}

// TestSingleAddressIsRefused checks that a system named by one of its addresses is never combined
// with the default of the other.
func TestSingleAddressIsRefused(t *testing.T) {
	for words, want := range map[string]string{
		"verify --addr 127.0.0.1:9":                    "--admin-addr",
		"status --addr 127.0.0.1:9":                    "--admin-addr",
		"sql --admin-addr 127.0.0.1:9 x":               "--addr",
		"import online-retail --admin-addr 10.0.0.1 f": "--addr",
	} {
		_, err := run(t, strings.Fields(words)...)
		if err == nil || !strings.Contains(err.Error(), "set "+want+" (") {
			t.Errorf("%q: %v, want an error that asks for %s", words, err, want)
		}
	}
	for words, addr := range map[string]string{
		"verify --admin-addr 127.0.0.1:9":                      "127.0.0.1:9",
		"verify --admin-addr 127.0.0.1:9 --addr 127.0.0.1:10":  "127.0.0.1:9",
		"sql --addr 127.0.0.1:9 x":                             "127.0.0.1:9",
		"sql --addr 127.0.0.1:9 --admin-addr 127.0.0.1:10 x":   "127.0.0.1:9",
		"status --admin-addr 127.0.0.1:9 --addr 127.0.0.1:700": "127.0.0.1:9",
	} {
		_, err := run(t, strings.Fields(words)...)
		if err == nil || !strings.Contains(err.Error(), "cannot connect to millrace") ||
			!strings.Contains(err.Error(), addr) {
			t.Errorf("%q: %v, want that the connection to %s is refused", words, err, addr)
		}
	}
}

// TestRemoteSystemNeedsNoListenerSettings checks that a call to another system does not need the
// settings of a listener.
func TestRemoteSystemNeedsNoListenerSettings(t *testing.T) {
	for _, words := range []string{"status --admin-addr 192.0.2.1:9", "verify --admin-addr host.invalid:9",
		"sql --addr host.invalid:9 x"} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // before anything is sent
		root := newRoot()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs(strings.Fields(words))
		if err := execute(ctx, root); err == nil || strings.Contains(err.Error(), "loopback") {
			t.Errorf("%q: %v, want the error of the call alone", words, err)
		}
	}
	if _, err := run(t, "up", "--addr", "192.0.2.1:9", "--data", t.TempDir()); err == nil ||
		!strings.Contains(err.Error(), "auth.tokens") {
		t.Errorf("up: %v, want that a listener there needs tokens", err)
	}
}

// TestUnresponsiveServerIsReported checks that a server which accepts connections but never
// answers, such as a hanging process, is reported and not waited for.
func TestUnresponsiveServerIsReported(t *testing.T) {
	defer func(was time.Duration) { pingTimeout = was }(pingTimeout)
	pingTimeout = 50 * time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	for _, words := range []string{"status --admin-addr", "verify --admin-addr", "sql x --addr"} {
		_, err := run(t, strings.Fields(words+" "+listener.Addr().String())...)
		if err == nil || !strings.Contains(err.Error(), "accepts connections but does not respond") {
			t.Errorf("%q: %v", words, err)
		}
	}
}

// TestMistypedTables checks that a mistyped topic or table is reported, and does not become a
// table.
func TestMistypedTables(t *testing.T) {
	data := t.TempDir()
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{DataDir: t.TempDir(), Addr: "127.0.0.1:0",
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close() //nolint:errcheck // the test is over
	brokers := kafka.Config{Brokers: broker.Addr(), ClientID: "test"}
	if err := kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "clicks", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MILLRACE_KAFKA_BROKERS", broker.Addr())
	if _, err := run(t, "lake", "land", "--data", data, "--topic", "clicks", "--json", "--until-end"); err != nil {
		t.Fatal(err)
	}
	_, err = run(t, "lake", "land", "--data", data, "--topic", "cliks", "--json", "--until-end")
	if err == nil || !strings.Contains(err.Error(), `no topic "cliks"`) {
		t.Errorf("land: %v", err)
	}
	if out, err := run(t, "lake", "tables", "--data", data); err != nil || !strings.Contains(out, "foreign.clicks") ||
		strings.Contains(out, "cliks") {
		t.Errorf("the tables: %v\n%s", err, out)
	}
	for _, command := range []string{"maintain", "files", "snapshots"} {
		_, err := run(t, "lake", command, "foreign.cliks", "--data", data)
		if err == nil || !strings.Contains(err.Error(), "no table foreign.cliks") ||
			strings.Contains(err.Error(), "lander") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// TestPortInUse checks that the error for a port in use names the setting to change.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	busy := l.Addr().String()
	for setting, args := range map[string][]string{
		"--addr":       {"--addr", busy, "--admin-addr", "127.0.0.1:0"},
		"--admin-addr": {"--admin-addr", busy, "--addr", "127.0.0.1:0"},
		"kafka.listen": {"--admin-addr", "127.0.0.1:0", "--addr", "127.0.0.1:0"},
	} {
		t.Setenv("MILLRACE_KAFKA_LISTEN", "127.0.0.1:0")
		if setting == "kafka.listen" {
			t.Setenv("MILLRACE_KAFKA_LISTEN", busy)
		}
		_, err := run(t, append([]string{"up", "--no-demo", "--data", t.TempDir(), "--tracking-addr", "127.0.0.1:0"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "set "+setting+" to another address") {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// TestTopicThatDeletesEventsIsRefused checks that an existing topic that deletes events is refused
// before anything is written to it.
func TestTopicThatDeletesEventsIsRefused(t *testing.T) {
	data := t.TempDir()
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{DataDir: filepath.Join(data, "kafka"),
		Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	// Topics of positions are compacted. The wrong declaration makes this topic one.
	err = kafka.EnsureTopics(t.Context(), kafka.Config{Brokers: broker.Addr(), ClientID: "test"},
		kafka.Topic{Name: event.Order.Topic, Partitions: 4, Compacted: true})
	if err = errors.Join(err, broker.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = run(t, "up", "--no-demo", "--data", data, "--addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
		"--tracking-addr", "127.0.0.1:0")
	if err == nil || !strings.Contains(err.Error(), "cleanup.policy") ||
		!strings.Contains(err.Error(), "kafka-configs.sh --alter") {
		t.Errorf("%v, want a refusal that names the setting and the remedy", err)
	}
}
