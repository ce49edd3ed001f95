package kafka_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/security"
)

// Both clients can connect to brokers that require TLS and a password.
func TestSecuredBrokers(t *testing.T) {
	t.Parallel()
	for _, mechanism := range []string{security.Plain, security.ScramSHA256, security.ScramSHA512} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			brokers, with := apache.Secured(t, mechanism)
			b := newBroker(kafka.Config{Brokers: brokers, Logger: quiet, Security: with})
			b.ensure(t, 1)
			commit(t, b.transactional(t, "p"), b.record(0, "k", "a"))

			m := b.join(t, nil)
			if got := m.poll(t, 2); got[0] != "a" {
				t.Errorf("the consumer got %v", got)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			r := b.reader(t)
			r.Assign(map[int32]int64{0: 0})
			batches, err := r.Poll(t.Context(), time.Minute)
			if err != nil || len(batches) != 1 || batches[0].Next != 2 {
				t.Errorf("the reader got %v, %v", batches, err)
			}
		})
	}
}

// The first call of either client returns a refusal at once, and does not wait.
func TestRefused(t *testing.T) {
	t.Parallel()
	brokers, good := apache.Secured(t, security.ScramSHA512)
	stranger := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(stranger, []byte(strangerCA), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*security.Config)
		want  string
	}{
		"wrong password":      {func(s *security.Config) { s.Password = "wrong" }, "uthentication"},
		"unknown user":        {func(s *security.Config) { s.Username = "nobody" }, "uthentication"},
		"untrusted authority": {func(s *security.Config) { s.CAFile = stranger }, "certificate"},
		"wrong password, PLAIN": {func(s *security.Config) {
			s.Mechanism, s.Password = security.Plain, "wrong"
		}, "uthentication"},
	} {
		with := good
		c.spoil(&with)
		b := newBroker(kafka.Config{Brokers: brokers, Logger: quiet, Security: with})
		for who, call := range map[string]func(context.Context, *testing.T) error{
			"admin": func(ctx context.Context, _ *testing.T) error {
				return kafka.EnsureTopics(ctx, b.Config, kafka.Topic{Name: b.topic, Partitions: 1})
			},
			"transactional producer": func(ctx context.Context, t *testing.T) error {
				p, err := kafka.NewTransactionalProducer(b.Config, "p")
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				return p.Init(ctx)
			},
			"producer": func(ctx context.Context, t *testing.T) error {
				p, err := kafka.NewProducer(b.Config)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // its own timeout is longer
				defer cancel()
				return p.Produce(ctx, b.record(0, "k", "v"))
			},
			"consumer": func(ctx context.Context, t *testing.T) error {
				m := b.join(t, nil)
				defer func() { _ = m.Close() }()
				for ctx.Err() == nil {
					if _, err := m.Poll(50 * time.Millisecond); err != nil {
						return err
					}
				}
				return ctx.Err()
			},
			"read all": func(ctx context.Context, _ *testing.T) error {
				return kafka.ReadAll(ctx, b.Config, b.topic, nil, map[int32]int64{0: 1},
					func(kafka.Message) error { return nil })
			},
			"describe": func(ctx context.Context, t *testing.T) error {
				_, err := b.reader(t).Describe(ctx)
				return err
			},
		} {
			t.Run(name+"/"+who, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				from := time.Now()
				err := call(ctx, t)
				took := time.Since(from)
				if !errors.Is(err, kafka.ErrRefused) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("after %v: %v", took, err)
				}
				if err != nil && (strings.Contains(err.Error(), good.Password) ||
					strings.Contains(err.Error(), "wrong")) {
					t.Errorf("the password is in the error: %v", err)
				}
				t.Logf("refused after %v: %v", took, err)
			})
		}
	}
}

// Every kind of client rejects incomplete security settings when it is opened.
func TestIncompleteSecurityIsRejected(t *testing.T) {
	t.Parallel()
	half := security.Config{TLS: true, Mechanism: security.Plain, Username: "u"}
	_, err := kafka.NewAdmin(kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet, Security: half})
	_, err2 := fetch.Open(fetch.Config{Brokers: []string{"127.0.0.1:1"}, Logger: quiet, Security: half})
	for _, err := range []error{err, err2} {
		if err == nil || !strings.Contains(err.Error(), "Password is missing") {
			t.Error(err)
		}
	}
}

// reader returns a batch reader of the topic.
func (b broker) reader(t *testing.T) *fetch.Reader {
	t.Helper()
	r, err := fetch.Open(fetch.Config{Brokers: strings.Split(b.Brokers, ","), Topic: b.topic, Logger: quiet,
		Security: b.Security})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// strangerCA has signed no broker's certificate.
const strangerCA = `-----BEGIN CERTIFICATE-----
MIIBfjCCASOgAwIBAgIUPUluA/NoH9HuQZ/k0HuKFeY8yvIwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIc3RyYW5nZXIwIBcNMjYxMTIyMTM0NzUzWhgPMjEyNjEwMjkx
MzQ3NTNaMBMxETAPBgNVBAMMCHN0cmFuZ2VyMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEibYeYeBZMjYJkq/tlPU+SKgXx4s2GfiJlPAH3SRpfK74pXGu+Yd/u1Tf
q4lAJYSXZ21823gNO1yst1GJhpT7dKNTMFEwHQYDVR0OBBYEFPKBFi91r8H97O8D
vEd/ccX/f8CEMB8GA1UdIwQYMBaAFPKBFi91r8H97O8DvEd/ccX/f8CEMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAO8iuaPWuaegBR54DKm/ZGfP
Iy6aWbZ+3H1qPU6oW2GJAiEA4pQm2RR0Q3a0JqArOBXDcrzG3EM0usMCXm311e+3
nk0=
-----END CERTIFICATE-----`
