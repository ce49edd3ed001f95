package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ResidentMB returns the current memory of the server, in MB.
func (p *Process) ResidentMB() (int, error) { return ResidentMB(p.pid) }

// PeakMB returns the highest memory of the server, in MB.
func (p *Process) PeakMB() (int, error) { return status(p.pid, "VmHWM:") }

// ResidentMB returns the current memory of a process, in MB.
func ResidentMB(pid int) (int, error) { return status(pid, "VmRSS:") }

// status returns a value of /proc/PID/status in MB. Linux reports it in kB.
func status(pid int, name string) (mb int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc: process %d has ended", name, pid)
}

// tick is the unit in which Linux reports CPU time to programs.
const tick = 10 * time.Millisecond

// CPU returns the server's CPU time, in user and kernel mode.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// The format is "id (name) state …", and the name may contain anything. User time is the 14th
	// field, and kernel time the 15th.
	words := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, word := range words[11:13] {
		n, err := strconv.Atoi(word)
		if err != nil {
			return 0, fmt.Errorf("CPU time of %s: %w", p.command.Name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}
