package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
)

// TestFullDisk fills the disk under a running system, kills the system, and starts it while the
// disk is still full. Commands are rejected with the reason. After room is made, everything
// continues by itself, and nothing is lost or duplicated.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	data := filepath.Join(disk, "data")
	filler := filepath.Join(disk, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() //nolint:errcheck // it is removed soon
		for size := 1 << 20; size > 0; size /= 2 {
			for err = nil; err == nil; {
				_, err = f.Write(make([]byte, size))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
	}
	s := up(t, data, "127.0.0.1:0")
	s.ready()
	for range 5 {
		s.place(uuid.NewString())
	}
	fill()
	s.kill()

	// Once is not enough: the files that the killed process had open are free again.
	fill()
	again := &system{t: t, data: data, ended: make(chan error, 1), output: &lockedBuffer{}}
	again.cmd = exec.Command(binary, "up", "--data", data, "--addr", s.addr, "--admin-addr", s.admin, "--no-demo",
		"--tracking-addr", "127.0.0.1:0")
	again.cmd.Env = append(os.Environ(), "MILLRACE_LOG_LEVEL=warn")
	again.cmd.Stdout, again.cmd.Stderr = again.output, again.output
	if err := again.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.cmd.Process.Kill() })
	go func() { again.ended <- again.cmd.Wait() }()
	again.addr, again.admin = s.addr, s.admin
	eventually(t, "told that the disk is full", func() bool {
		select {
		case err := <-again.ended:
			t.Fatalf("the system exited on a full disk: %v\n%s", err, again.output)
		default:
		}
		return strings.Contains(again.output.String(), "the disk is full")
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	again.ready()
	again.place(uuid.NewString())
	before := again.verified()
	if before["store order events"] == "" {
		t.Errorf("verify does not report orders: %v", before)
	}

	// Now the same on a running system.
	fill()
	if err := exec.CommandContext(t.Context(), binary, "status", "--addr", s.addr, "--admin-addr",
		s.admin).Run(); err != nil {
		t.Errorf("status on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	again.ready()
	again.place(uuid.NewString())
	again.verified()
	again.stop()
}
