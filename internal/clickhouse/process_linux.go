package clickhouse

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the child when this process dies, and keeps the terminal's
// Ctrl-C, which goes to a whole process group, from it: the parent stops it in its turn.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
