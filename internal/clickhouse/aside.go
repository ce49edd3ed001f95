package clickhouse

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// bootAttempts is how often ClickHouse may fail on its tables before they are set aside.
const bootAttempts = 2

// damage decides when the tables of an engine are damaged. Then it sets them aside, so that the
// engine starts without them: what is in them can be read from the log again. If the engine does
// not start with an empty folder either, the tables are not the reason, and it restores them.
type damage struct {
	scratch, tables string // folders; tables may be empty
	log             *slog.Logger

	failures int  // boots that failed in a row
	aside    bool // the tables were set aside, and no boot has succeeded since
	given    bool // up: the tables are not the reason
}

// forget removes the mark of an earlier start.
func (d *damage) forget() error {
	err := os.Remove(filepath.Join(d.scratch, BootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ended records how a child ended. It reports whether another start is worth trying.
func (d *damage) ended(err error) (again bool, _ error) {
	_, missing := os.Stat(filepath.Join(d.scratch, BootFile))
	switch {
	case d.tables == "" || d.given:
		return false, nil
	case missing != nil: // it started, or failed for another reason
		if d.aside {
			d.aside = false // the empty folder is in use
		}
		d.failures = 0
		return false, nil
	case killed(err): // by an operator, or for want of memory
		return false, nil
	case d.aside:
		d.aside, d.given = false, true
		d.log.Error("ClickHouse engine: it does not start with an empty folder either; the tables are kept")
		return false, d.restore()
	}
	if d.failures++; d.failures < bootAttempts {
		return true, nil
	}
	d.failures, d.aside = 0, true
	return true, d.setAside(err)
}

// name returns the folder of damaged tables.
func (d *damage) name() string { return d.tables + ".damaged" }

// setAside renames the folder of the tables. Only the most recent damaged one is kept.
func (d *damage) setAside(reason error) error {
	d.log.Error("ClickHouse engine: the tables are damaged and were set aside; they are built again from the log",
		"folder", d.tables, "set_aside", d.name(), "error", reason)
	if err := errors.Join(os.RemoveAll(d.name()), os.Rename(d.tables, d.name())); err != nil {
		return fmt.Errorf("set aside damaged tables: %w", err)
	}
	return nil
}

// restore undoes setAside.
func (d *damage) restore() error {
	if err := errors.Join(os.RemoveAll(d.tables), os.Rename(d.name(), d.tables)); err != nil {
		return fmt.Errorf("restore the tables: %w", err)
	}
	return nil
}

// killed reports whether a process was ended by a signal from outside.
func killed(err error) bool {
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return false
	}
	switch status.Signal() {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT:
		return true
	}
	return false
}
