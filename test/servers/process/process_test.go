package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/process"
)

// victimEnv is an environment variable that turns the test binary into a process that is killed
// while its server runs.
const victimEnv = "MILLRACE_TEST_VICTIM"

func TestMain(m *testing.M) {
	dir := os.Getenv(victimEnv)
	if dir == "" {
		goleak.VerifyTestMain(m)
		return
	}
	p, err := process.Start(context.Background(), sleeper(dir))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	select {} // until killed
}

func sleeper(dir string) process.Command {
	return process.Command{Name: "sleeper", Path: "/bin/sleep", Args: []string{"1000"}, Dir: dir, Scratch: dir,
		Ready: func(context.Context) error { return nil }}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// TestServerEndsWithTestProcess kills a test process. Its server must end, and its folder must be
// removed.
func TestServerEndsWithTestProcess(t *testing.T) {
	t.Parallel()
	scratch := t.TempDir()
	victim := exec.CommandContext(t.Context(), os.Args[0])
	victim.Env = append(os.Environ(), victimEnv+"="+scratch)
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || !alive(pid) {
		t.Fatalf("the victim's server does not run: %q, %v", line, err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // killed
	polltest.Until(t, "the server ends with its test process", func() bool { return !alive(pid) })
	polltest.Until(t, "its folder is removed", func() bool {
		_, err := os.Stat(scratch)
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestKillAndStop(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*process.Process) error{
		"kill": (*process.Process).Kill,
		"stop": func(p *process.Process) error { return p.Stop(10 * time.Second) },
		"kill while frozen": func(p *process.Process) error {
			return errors.Join(p.Signal(syscall.SIGSTOP), p.Kill())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p, err := process.Start(t.Context(), sleeper(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := end(p); err != nil {
				t.Fatal(err)
			}
			if alive(p.PID()) {
				t.Error("the server still runs")
			}
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("the folder must remain for a restart: %v", err)
			}
		})
	}
}

func TestStartReportsTheLog(t *testing.T) {
	t.Parallel()
	c := sleeper(t.TempDir())
	c.Path, c.Args = "/bin/sh", []string{"-c", "echo the reason; exit 1"}
	c.Ready = func(context.Context) error { return errors.New("no answer") }
	_, err := process.Start(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("error %v, want the readiness error and the log", err)
	}
}

// TestPause checks that a server is frozen when Pause returns, and continues after Resume.
func TestPause(t *testing.T) {
	t.Parallel()
	command := sleeper(t.TempDir())
	command.Path, command.Args = "/bin/sh", []string{"-c", "while :; do :; done"}
	p, err := process.Start(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	}()
	state := func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(stat))[2]
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != "T" {
		t.Errorf("state after Pause is %s, want T", got)
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the process runs", func() bool { return state() == "R" })
}

// TestUsage checks that a process that computes uses CPU time, and a sleeping one does not.
func TestUsage(t *testing.T) {
	t.Parallel()
	usage := func(command string) *process.Process {
		c := sleeper(t.TempDir())
		c.Path, c.Args = "/bin/sh", []string{"-c", command}
		p, err := process.Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
		})
		return p
	}
	idle, busy := usage("exec sleep 1000"), usage("while :; do :; done")
	polltest.Until(t, "the busy process has used 100 ms of CPU time", func() bool {
		cpu, err := busy.CPU()
		if err != nil {
			t.Fatal(err)
		}
		return cpu >= 100*time.Millisecond
	})
	if cpu, err := idle.CPU(); err != nil || cpu > 50*time.Millisecond {
		t.Errorf("the sleeping process used %v, %v", cpu, err)
	}
	now, err1 := busy.ResidentMB()
	peak, err2 := busy.PeakMB()
	if err := errors.Join(err1, err2); err != nil || peak < now {
		t.Errorf("%d MB now, %d MB at most, %v", now, peak, err)
	}
	if err := busy.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := busy.CPU(); err == nil {
		t.Error("CPU of an ended process returned no error")
	}
}
