package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/flags"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/security"
	clickhouseserver "github.com/millrace/millrace/test/servers/clickhouse"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// TestKafkaGrants gives a Kafka the users and rights of deploy/kafka/grants, and runs the roles
// features and tracking with theirs. The roles must work, and their users must not have more rights
// than they need: tracking reads customers only if it has to know what they consent to.
func TestKafkaGrants(t *testing.T) {
	k := &kafkaserver.Cluster{Secure: true, Authorize: true}
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	})
	k.Brokers(t)
	secrets := t.TempDir()
	makeSecrets := exec.CommandContext(t.Context(), root+"/deploy/compose/secrets/make", secrets)
	if out, err := makeSecrets.CombinedOutput(); err != nil {
		t.Fatalf("make the secrets: %v: %s", err, out)
	}
	grant(t, k, secrets, "")

	access := func(user string) kafka.Config {
		brokers, with := k.SecureAccess(security.ScramSHA512)
		password, err := os.ReadFile(filepath.Join(secrets, "kafka_"+user))
		if err != nil {
			t.Fatal(err)
		}
		with.Username, with.Password = user, strings.TrimSpace(string(password))
		return kafka.Config{Brokers: brokers, ClientID: user, Security: with, Logger: slog.New(slog.DiscardHandler)}
	}
	var tables clickhouseserver.Server
	t.Cleanup(func() {
		if err := tables.Stop(); err != nil {
			t.Error(err)
		}
	})
	of := tables.Config(t)
	start := func(user string, settings ...string) (api string) {
		c := access(user)
		ports, err := process.FreePorts(2)
		if err != nil {
			t.Fatal(err)
		}
		at := func(i int) string { return fmt.Sprint("127.0.0.1:", ports[i]) }
		p, err := process.Start(t.Context(), process.Command{
			Name: "millrace serve --role " + user, Path: binary, Args: []string{"serve", "--role", user}, Dir: t.TempDir(),
			Env: append(settings,
				"MILLRACE_ADDR="+at(0), "MILLRACE_ADMIN_ADDR="+at(1), "MILLRACE_TRACKING_ADDR="+at(0),
				"MILLRACE_CLICKHOUSE_URL="+of.URL, "MILLRACE_CLICKHOUSE_USER="+of.User, "MILLRACE_CLICKHOUSE_PASSWORD="+of.Password,
				"MILLRACE_KAFKA_BROKERS="+c.Brokers, "MILLRACE_KAFKA_REPLICAS=1",
				"MILLRACE_KAFKA_TLS_ENABLED=true", "MILLRACE_KAFKA_TLS_CA="+c.Security.CAFile,
				"MILLRACE_KAFKA_SASL_MECHANISM="+c.Security.Mechanism, "MILLRACE_KAFKA_SASL_USER="+user,
				"MILLRACE_KAFKA_SASL_PASSWORD_FILE="+filepath.Join(secrets, "kafka_"+user),
			),
			StartTimeout: startTimeout,
			Ready: func(ctx context.Context) error {
				return expectOK(ctx, http.MethodGet, "http://"+at(1)+"/readyz", "")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Stop(stopTimeout); err != nil {
				t.Error(err)
			}
		})
		return "http://" + at(0)
	}
	start("features") // which creates the topics
	if err := use(t, access("tracking"), event.Customer.Topic, false); err == nil {
		t.Error("tracking reads customers, although it does not need to")
	}
	grant(t, k, secrets, "1")
	intake := start("tracking", "MILLRACE_TRACKING_CONSENT={analytics: drop}")
	if err := expectOK(t.Context(), http.MethodPost, intake+"/v1/batch",
		`{"batch":[{"type":"page","userId":"u","messageId":"1"},{"type":"page"}]}`); err != nil {
		t.Errorf("an event and a dead letter: %v", err)
	}

	changeFlags(t, access)

	for _, c := range []struct {
		user, topic string
		write       bool
		allowed     bool
	}{
		{"tracking", event.Behavior.Topic, true, true},
		{"tracking", event.Order.Topic, true, false},
		{"tracking", event.Order.Topic, false, false},
		{"tracking", event.Customer.Topic, false, true},
		{"tracking", event.Customer.Topic, true, false},
		{"features", event.Order.Topic, false, true},
		{"features", event.Behavior.Topic, false, true},
		{"features", event.Order.Topic, true, false},
		{"features", event.Behavior.Topic, true, false},
		{"query", event.Order.Topic, true, false},
		{"query", flags.Topic, true, false},
		{"features", flags.Topic, true, false},
		{"tracking", flags.Topic, false, false},
		{"admin", event.Order.Topic, true, false},
		{"relay", event.Order.Topic, true, true},
	} {
		if err := use(t, access(c.user), c.topic, c.write); (err == nil) != c.allowed {
			t.Errorf("%s uses %s, write %v: %v, want allowed %v", c.user, c.topic, c.write, err, c.allowed)
		} else if !c.allowed && (errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timed out")) {
			// The errors differ: a topic that a user may not describe is unknown to it, and a producer
			// that may write nothing drops its records.
			t.Errorf("%s uses %s, write %v: %v, want a refusal", c.user, c.topic, c.write, err)
		}
	}
}

// changeFlags sets a flag as the user admin, and fails to as another one that reads flags.
func changeFlags(t *testing.T, access func(user string) kafka.Config) {
	t.Helper()
	for user, allowed := range map[string]bool{"admin": true, "query": false} {
		reader := flags.NewReader(access(user), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		var running sync.WaitGroup
		running.Go(func() {
			if err := reader.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		writer, err := flags.NewWriter(flags.WriterConfig{Kafka: access(user), TransactionalID: "millrace-flags", Reader: reader,
			Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		_, err = writer.Set(ctx, flags.Edit{Name: "allowed", Type: flags.Bool, Value: []byte("true")})
		if ended := ctx.Err(); (err == nil) != allowed || ended != nil {
			t.Errorf("%s sets a flag: %v, want allowed %v", user, errors.Join(err, ended), allowed)
		}
		writer.Close()
		cancel()
		running.Wait()
	}
}

// grant runs the script with commands that print what they would do, and does that. consent is its
// TRACKING_CONSENT.
func grant(t *testing.T, k *kafkaserver.Cluster, secrets, consent string) {
	t.Helper()
	home, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	for name, text := range map[string]string{
		"kafka-configs.sh": `while [ $# -gt 0 ]; do
  case $1 in --entity-name) name=$2 ;; --add-config-file) password=$(cut -d= -f3- "$2") ;; esac
  shift
done
echo "user $name $password" >> "$LOG"`,
		"kafka-acls.sh": `echo "acls ${*:5}" >> "$LOG" # without the address and the operator's certificate`,
	} {
		path := filepath.Join(home, "bin", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750),
			os.WriteFile(path, []byte("#!/usr/bin/env bash\n"+text+"\n"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	script := exec.CommandContext(t.Context(), root+"/deploy/kafka/grants")
	script.Env = append(os.Environ(), "BROKERS=broker:9093", "SECRETS="+secrets, "KAFKA_HOME="+home, "LOG="+log,
		"TRACKING_CONSENT="+consent)
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("grants: %v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if words[0] == "user" && len(words) == 3 {
			err = k.AddUser(t.Context(), words[1], words[2])
		} else {
			err = k.Allow(t.Context(), words[1:]...)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// use writes a record to a topic, or reads the topic.
func use(t *testing.T, c kafka.Config, topic string, write bool) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if write {
		p, err := kafka.NewProducer(c)
		if err != nil {
			return err
		}
		defer p.Close()
		return p.Produce(ctx, kafka.Record{Topic: topic, Partition: kafka.AnyPartition, Key: []byte("k"), Value: []byte("v")})
	}
	admin, err := kafka.NewAdmin(c)
	if err != nil {
		return err
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	return kafka.ReadAll(ctx, c, topic, nil, ends, func(kafka.Message) error { return nil })
}

// expectOK makes a request with the key of the demo, and expects the status 200.
func expectOK(ctx context.Context, method, to, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, to, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.SetBasicAuth(tracking.DemoKey, "")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, text.String())
	}
	return nil
}
