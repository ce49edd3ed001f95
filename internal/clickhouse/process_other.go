//go:build !linux

package clickhouse

import "os/exec"

// dieWithParent does nothing on this platform. The end of standard input tells the child that its
// parent has ended.
func dieWithParent(*exec.Cmd) {}
