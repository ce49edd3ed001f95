package clickhouse

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill the child when this process ends. It also gives the child its
// own process group, so that Ctrl-C in a terminal does not reach it: the parent stops it in the
// right order.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
