package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ResidentMB returns the memory that the server holds now, in MB.
func (p *Process) ResidentMB() (int, error) { return ResidentMB(p.pid) }

// PeakMB returns the most memory that the server has held, in MB.
func (p *Process) PeakMB() (int, error) { return status(p.pid, "VmHWM:") }

// ResidentMB returns the memory that a process holds now, in MB.
func ResidentMB(pid int) (int, error) { return status(pid, "VmRSS:") }

// status returns a line of what Linux says of a process, which is in kB, in MB.
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

// Linux counts time in these for programs, whatever its own clock.
const tick = 10 * time.Millisecond

// CPU returns the time that the server has computed, for itself and in the kernel, on all
// processors together.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// "id (name) state …", where the name may have anything in it. Own time is the 14th word, the
	// kernel's the 15th.
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
