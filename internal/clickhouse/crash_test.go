package clickhouse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

// persistent returns the configuration of an engine whose tables are in a folder of their own.
func persistent(t *testing.T) clickhouse.Config {
	t.Helper()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.Tables = filepath.Join(t.TempDir(), "engine"), filepath.Join(t.TempDir(), "clickhouse")
	return c
}

// startOn starts an engine that the test closes.
func startOn(t *testing.T, c clickhouse.Config) *clickhouse.Engine {
	t.Helper()
	e, err := clickhouse.StartEngine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func stop(t *testing.T, e *clickhouse.Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// kill kills the process of an engine and returns when another one has replaced it.
func kill(t *testing.T, e *clickhouse.Engine) {
	t.Helper()
	killed := e.PID()
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "another process", func() bool { pid := e.PID(); return pid != 0 && pid != killed })
}

// only returns the only file that matches a pattern.
func only(t *testing.T, pattern ...string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v: found %v, %v", pattern, found, err)
	}
	return found[0]
}

// Tokens are remembered across an orderly restart, with an empty scratch folder, and a kill.
func TestTokensSurviveRestart(t *testing.T) {
	t.Parallel()
	c := persistent(t)
	table := numbers("kept")
	for run := range uint64(3) {
		e := startOn(t, c)
		s := clickhousetest.OpenStoreOn(t, e)
		create(t, s, table)
		for token := range run + 1 {
			insert(t, s, table, fmt.Sprint(token), token*10, 10)
		}
		kill(t, e)
		for token := range run + 1 {
			insert(t, s, table, fmt.Sprint(token), token*10, 10)
		}
		wantRows(t, s, table, (run+1)*10)
		stop(t, e)
		if err := os.RemoveAll(c.DataDir); err != nil {
			t.Fatal(err)
		}
	}
}

// A kill between the log of a token and its rows, which a removed part represents, does not lose the
// rows of the retry.
func TestTokenWithoutRows(t *testing.T) {
	t.Parallel()
	c := persistent(t)
	e := startOn(t, c)
	s := clickhousetest.OpenStoreOn(t, e)
	table := create(t, s, numbers("cut_off"))
	for n := range uint64(3) {
		insert(t, s, table, fmt.Sprint(n), n, 1)
	}
	stop(t, e)
	if err := os.RemoveAll(only(t, c.Tables, "store", "*", "*", "all_2_2_0")); err != nil {
		t.Fatal(err)
	}
	e = startOn(t, c)
	defer stop(t, e)
	s = clickhousetest.OpenStoreOn(t, e)
	wantRows(t, s, table, 2)
	for n := range uint64(3) {
		insert(t, s, table, fmt.Sprint(n), n, 1)
	}
	wantRows(t, s, table, 3)
}

// Writers that repeat failed inserts lose and double nothing while the engine is killed at random
// moments.
func TestKillsDuringInserts(t *testing.T) {
	t.Parallel()
	const writers, batches, rows, kills = 4, 25, 2000, 4
	c := persistent(t)
	e := startOn(t, c)
	defer stop(t, e)
	s := clickhousetest.OpenStoreOn(t, e)
	table := numbers("killed")
	table.PartitionBy = "n % 3" // an insert is three parts, so that a kill can leave some of them
	create(t, s, table)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for w := range uint64(writers) {
		work.Go(func() {
			for n := range uint64(batches) {
				first := (w*batches + n) * rows
				b, err := s.Batch(table, fmt.Sprint(w, "/", n))
				for i := first; i < first+rows; i++ {
					err = errors.Join(err, b.Append(i))
				}
				waits := backoff.Call.Start()
				for err = errors.Join(err, b.Send(ctx)); err != nil && clickhouse.Retryable(err) && waits.Wait(ctx); {
					err = b.Send(ctx)
				}
				if err != nil {
					t.Errorf("batch %d of writer %d: %v", n, w, err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for range kills {
		select {
		case <-done:
		case <-time.After(time.Duration(rand.Int64N(int64(300 * time.Millisecond)))): // the moment is what varies
			kill(t, e)
		}
	}
	<-done
	wantRows(t, s, table, writers*batches*rows)
	kill(t, e)
	wantRows(t, s, table, writers*batches*rows)
}

// Tables with which the engine does not start are set aside, and it starts without them.
func TestDamagedTables(t *testing.T) {
	t.Parallel()
	c := persistent(t)
	var log lockedLog
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 2 { // the second damage replaces what was set aside
		e := startOn(t, c)
		s := clickhousetest.OpenStoreOn(t, e)
		table := create(t, s, numbers("damaged"))
		insert(t, s, table, "a", 0, 10)
		wantRows(t, s, table, 10)
		stop(t, e)
		definition := only(t, c.Tables, "store", "*", "*", "damaged.sql")
		if err := os.WriteFile(definition, []byte("ATTACH TAB"), 0o600); err != nil {
			t.Fatal(err)
		}
		e = startOn(t, c)
		s = clickhousetest.OpenStoreOn(t, e)
		var tables uint64
		if err := scanOne(t.Context(), s, "SELECT count() FROM system.tables WHERE database = 'features'", &tables); err != nil || tables != 0 {
			t.Errorf("%d tables, %v", tables, err)
		}
		content, err := os.ReadFile(only(t, c.Tables+".damaged", "store", "*", "*", "damaged.sql"))
		if err != nil || !bytes.Equal(content, []byte("ATTACH TAB")) {
			t.Errorf("set aside: %q, %v", content, err)
		}
		stop(t, e)
	}
	if !strings.Contains(log.String(), "the tables are damaged and were set aside") || !strings.Contains(log.String(), "damaged.sql") {
		t.Errorf("the log does not say which file is damaged: %s", &log)
	}
}

// Tables are not set aside for other reasons: an engine that does not start without them either,
// one that is killed, and one that ends before it reads them.
func TestTablesThatAreNotDamaged(t *testing.T) {
	t.Parallel()
	mark := "touch $" + clickhouse.EnvData + "/" + clickhouse.BootFile + "; "
	for name, script := range map[string]string{
		"starts with no tables either": mark + "exit 1", "killed": mark + "kill -9 $$", "too early": "exit 1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := persistent(t)
			kept := filepath.Join(c.Tables, "kept")
			if err := errors.Join(os.MkdirAll(c.DataDir, 0o700), os.MkdirAll(c.Tables, 0o700), os.WriteFile(kept, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			c.Command = []string{"sh", "-c", script}
			if e, err := clickhouse.StartEngine(t.Context(), c); err == nil {
				t.Fatal(errors.Join(errors.New("it started"), e.Close()))
			}
			if _, err := os.Stat(kept); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(c.Tables + ".damaged"); err == nil {
				t.Error("the tables were set aside")
			}
		})
	}
}

// An engine that cannot start yet says why, and works once it can.
func TestPatientEngine(t *testing.T) {
	t.Parallel()
	c := persistent(t)
	repaired := filepath.Join(t.TempDir(), "repaired")
	c.Patient = true
	c.Command = append([]string{"sh", "-c", `test -e "$1" || { echo not repaired; exit 1; }; exec "$0"`}, c.Command[0], repaired)
	e := startOn(t, c)
	defer stop(t, e)
	if err := e.Err(); err == nil || !strings.Contains(err.Error(), "not repaired") {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(repaired, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "it runs", func() bool { return e.Err() == nil })
	s := clickhousetest.OpenStoreOn(t, e)
	table := create(t, s, numbers("patient"))
	insert(t, s, table, "", 0, 1)
	wantRows(t, s, table, 1)
}

// A server that accepts connections and does not answer blocks no call.
func TestSilentStore(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s, err := clickhouse.OpenStore(clickhouse.StoreConfig{Server: clickhouse.Server{URL: "http://" + listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it has no connections
	s.SetSilence(50 * time.Millisecond)
	b := batchOf(t, s, numbers("silent"), "", 0, 1)
	for name, call := range map[string]func(context.Context) error{
		"Exec": func(ctx context.Context) error { return s.Exec(ctx, "SELECT 1") },
		"Send": b.Send,
	} {
		if err := call(t.Context()); !errors.Is(err, clickhouse.ErrUnreachable) || !clickhouse.Retryable(err) {
			t.Errorf("%s: %v", name, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := call(ended); !errors.Is(err, context.Canceled) || clickhouse.Retryable(err) {
			t.Errorf("%s after the caller gave up: %v", name, err)
		}
	}
}
