package flags

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
)

// victim makes this binary the process that TestKilledWriter kills. Its value is the brokers.
const victim = "MILLRACE_TEST_FLAGS_VICTIM"

// beVictim sets a flag to 1, stops between the value and its entry of the history, and waits to be
// killed.
func beVictim(brokers string) int {
	cfg := kafka.Config{Brokers: brokers, ClientID: "victim", Logger: quiet}
	r := NewReader(cfg, quiet)
	ctx := context.Background()
	go func() { _ = r.Run(ctx) }()
	w, err := NewWriter(WriterConfig{Kafka: cfg, TransactionalID: victim, Reader: r, Now: time.Now})
	if err == nil {
		w.step = func(_ context.Context, s step) error {
			if s == stepValue {
				fmt.Println(s)
				_, _ = io.Copy(io.Discard, os.Stdin) // until the end of the test
			}
			return nil
		}
		_, err = w.Set(ctx, Edit{Name: "a", Type: Int, Value: json.RawMessage("1")})
	}
	fmt.Fprintln(os.Stderr, "the victim was not killed:", err)
	return 1
}

// TestKilledWriter kills a process between the value and its entry of the history, when the brokers have
// the value. Nobody sees either, new readers do not wait for the dead transaction, and the next change
// succeeds at once.
func TestKilledWriter(t *testing.T) {
	each(t, func(t *testing.T, cfg kafka.Config) {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), victim+"="+cfg.Brokers)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stdin.Close() }()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("the victim did not reach the step: %v", err)
		}
		admin, err := kafka.NewAdmin(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		polltest.Until(t, "the brokers have the value", func() bool {
			ends, err := admin.HighWatermarks(t.Context(), Topic)
			return err == nil && ends[0] == 1
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if all := follow(t, cfg).All(); len(all) != 0 {
			t.Errorf("half a change is visible: %+v", all)
		}
		w, err := NewWriter(WriterConfig{Kafka: cfg, TransactionalID: victim, Reader: follow(t, cfg), Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Set(t.Context(), Edit{Name: "a", Type: Int, Value: json.RawMessage("2"), Revision: value(int64(Absent))}); err != nil {
			t.Fatal(err)
		}
		if f, _ := w.cfg.Reader.Get("a"); string(f.Value) != "2" {
			t.Errorf("the flag is %s, want 2", f.Value)
		}
		if entries, err := w.History(t.Context(), "a", 0); err != nil || len(entries) != 1 {
			t.Errorf("the history is %+v, %v; want one change", entries, err)
		}
	})
}
