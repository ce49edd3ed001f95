package location

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/apache/iceberg-go/io"
)

// iceberg-go finds file systems in a registry. Local replaces its own one for the whole program.
func init() {
	for _, scheme := range []string{"file", ""} {
		io.Unregister(scheme)
		io.Register(scheme, func(context.Context, *url.URL, map[string]string) (io.IO, error) { return Local{}, nil })
	}
}

// Local is the file system for tables on local disk. It does not decode locations.
//
// Earlier versions decoded them when they wrote files. Those files are still found: if nothing
// exists at the path as written, but more of the decoded path exists, the decoded path is used. New
// files are placed beside the old ones in the same way.
type Local struct{}

// resolve returns the path of a location.
func resolve(op, name string) (string, error) {
	p, local := localPath(name)
	if !local {
		return "", &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("not a path on local disk: %w", fs.ErrInvalid)}
	}
	if climbs(p) {
		return "", &fs.PathError{
			Op: op, Path: name, Err: fmt.Errorf(`a location must not contain ".", ".." or NUL: %w`, fs.ErrPermission),
		}
	}
	if !strings.Contains(p, "%") {
		return p, nil
	}
	// Earlier versions wrote to the decoded path. Use it if more of it exists.
	other := decoded(p)
	if other == p || climbs(other) || depth(p) >= depth(other) {
		return p, nil
	}
	return other, nil
}

// depth returns how much of a path exists: the number of slashes of its deepest existing folder, or
// a very large number if the path itself exists.
func depth(p string) int {
	if _, err := os.Lstat(p); err == nil {
		return 1 << 30
	}
	for dir := filepath.Dir(p); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil {
			return strings.Count(dir, "/")
		}
		if dir == filepath.Dir(dir) {
			return 0
		}
	}
}

// Open implements io.IO.
func (Local) Open(name string) (io.File, error) {
	p, err := resolve("open", name)
	if err != nil {
		return nil, err
	}
	return os.Open(p) //nolint:gosec // a table's file; Fence keeps it in the table's folder
}

// ReadFile implements io.ReadFileIO.
func (Local) ReadFile(name string) ([]byte, error) {
	p, err := resolve("open", name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p) //nolint:gosec // as for Open
}

// synced is set once files must be durable.
var synced atomic.Bool

// Sync makes files durable that this process writes through Local from now on: the file, and its
// entry in every folder that was created for it. They are durable when Close returns.
func Sync() { synced.Store(true) }

// Create implements io.WriteFileIO.
func (Local) Create(name string) (io.FileWriter, error) {
	p, made, err := createFolder("create", name)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(p) //nolint:gosec // as for Open
	if err != nil || !synced.Load() {
		return f, err
	}
	return durable{f, made}, nil
}

// WriteFile implements io.WriteFileIO. It replaces a file atomically: readers of a file that is
// rewritten, such as one that pins a past state, see either the old or the new content, even after
// a crash.
func (Local) WriteFile(name string, content []byte) error {
	p, made, err := createFolder("create", name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), partial) // maintenance removes leftovers as orphans
	if err != nil {
		return err
	}
	// Write a temporary file in the same folder, because a rename is only atomic within a file
	// system.
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644)) // for other engines that run as other users
	if err == nil && synced.Load() {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if synced.Load() {
		for _, folder := range made {
			if err := syncFolder(folder); err != nil {
				return err
			}
		}
	}
	return nil
}

// partial is the name pattern of temporary files.
const partial = "*.part"

// durable is a file that is synced when it is closed, followed by the folders with new entries.
type durable struct {
	*os.File
	folders []string
}

// Close implements io.Closer.
func (d durable) Close() error {
	errs := []error{d.Sync(), d.File.Close()}
	for _, folder := range d.folders {
		errs = append(errs, syncFolder(folder))
	}
	return errors.Join(errs...)
}

// syncFolder syncs a folder's entries. It is a variable, so that tests can observe the calls.
var syncFolder = func(folder string) error {
	f, err := os.Open(folder) //nolint:gosec // a table's folder
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// createFolder creates the folder of a file that is about to be created. It returns the file's
// path, and the folders in which that creates new entries.
func createFolder(op, name string) (p string, folders []string, err error) {
	if p, err = resolve(op, name); err != nil {
		return "", nil, err
	}
	// Walk up to the first folder that exists: it gets a new entry, too.
	for folder := filepath.Dir(p); ; folder = filepath.Dir(folder) {
		folders = append(folders, folder)
		if _, err := os.Stat(folder); err == nil || folder == filepath.Dir(folder) {
			break
		}
	}
	return p, folders, os.MkdirAll(filepath.Dir(p), 0o755) //nolint:gosec // as for WriteFile
}

// restore implements Restore. It creates a hard link, so that programs that decode the location
// still find the file, too. On file systems without hard links it copies the file.
func (Local) restore(name string) (bool, error) {
	written, _ := localPath(name)
	actual, err := resolve("link", name)
	if err != nil || actual == written {
		return false, err
	}
	if _, err := os.Lstat(actual); err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(written), 0o755); err != nil { //nolint:gosec // as for WriteFile
		return false, err
	}
	if os.Link(actual, written) == nil {
		return true, nil
	}
	content, err := os.ReadFile(actual) //nolint:gosec // as for Open
	if err != nil {
		return false, err
	}
	temporary := written + ".part"                                  // readers must not see a partial file
	if err := os.WriteFile(temporary, content, 0o644); err != nil { //nolint:gosec // as for WriteFile
		return false, err
	}
	return true, os.Rename(temporary, written)
}

// Remove implements io.IO.
func (Local) Remove(name string) error {
	p, err := resolve("remove", name)
	if err != nil {
		return err
	}
	return os.Remove(p)
}

// Stat implements io.StatIO.
func (Local) Stat(name string) (fs.FileInfo, error) {
	p, err := resolve("stat", name)
	if err != nil {
		return nil, err
	}
	return os.Stat(p)
}

// WalkDir implements io.ListableIO. It reports files by path.
func (Local) WalkDir(root string, fn fs.WalkDirFunc) error {
	p, err := resolve("list", root)
	if err != nil {
		return err
	}
	return filepath.WalkDir(p, fn)
}
