package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// run is what a person gets who types the words.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
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

// A system that is named by one of its addresses is never mixed with the default of the other.
func TestOneAddressIsNotTwo(t *testing.T) {
	for words, want := range map[string]string{
		"verify --addr 127.0.0.1:9":                    "--admin-addr",
		"status --addr 127.0.0.1:9":                    "--admin-addr",
		"sql --admin-addr 127.0.0.1:9 x":               "--addr",
		"import online-retail --admin-addr 10.0.0.1 f": "--addr",
	} {
		_, err := run(t, strings.Fields(words)...)
		if err == nil || !strings.Contains(err.Error(), "name it with "+want) {
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
		if err == nil || !strings.Contains(err.Error(), "no millrace answers") || !strings.Contains(err.Error(), addr) {
			t.Errorf("%q: %v, want that nobody answers at %s", words, err, addr)
		}
	}
}

// A port that is taken says which setting changes it.
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
		_, err := run(t, append([]string{"up", "--no-demo", "--data", t.TempDir()}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "another address with "+setting) && !strings.Contains(err.Error(), "the setting "+setting) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// A topic that somebody made beforehand, so that it forgets events, is refused before anything is written to it.
func TestATopicThatForgetsIsRefused(t *testing.T) {
	data := t.TempDir()
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{DataDir: filepath.Join(data, "kafka"), Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	// A topic of positions is compacted: so is this one, by its wrong declaration.
	err = kafka.EnsureTopics(t.Context(), kafka.Config{Brokers: broker.Addr(), ClientID: "test"}, kafka.Topic{Name: event.Order.Topic, Partitions: 4, Compacted: true})
	if err = errors.Join(err, broker.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = run(t, "up", "--no-demo", "--data", data, "--addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0")
	if err == nil || !strings.Contains(err.Error(), "cleanup.policy") || !strings.Contains(err.Error(), "kafka-configs.sh --alter") {
		t.Errorf("%v, want a refusal that names the setting and the remedy", err)
	}
}
