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

// iceberg-go finds file systems by a registry, so Local takes its own one's place for the whole
// program.
func init() {
	for _, scheme := range []string{"file", ""} {
		io.Unregister(scheme)
		io.Register(scheme, func(context.Context, *url.URL, map[string]string) (io.IO, error) { return Local{}, nil })
	}
}

// Local is the file system of tables on local disk. It takes locations as they are written.
//
// Tables of before were written by a file system that decoded them. Their files are still found,
// and new ones placed beside them: where nothing is at the path as written, and something at the
// decoded one or nearer to it, that one is meant.
type Local struct{}

// resolve returns the path of a location.
func resolve(op, name string) (string, error) {
	p, local := localPath(name)
	if !local {
		return "", &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("it is not on local disk: %w", fs.ErrInvalid)}
	}
	if climbs(p) {
		return "", &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("a location does not lead upwards: %w", fs.ErrPermission)}
	}
	if !strings.Contains(p, "%") {
		return p, nil
	}
	other := decoded(p)
	if other == p || climbs(other) || depth(p) >= depth(other) {
		return p, nil
	}
	return other, nil
}

// depth returns how much of a path exists, in bytes, with the whole of it as the most.
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

// synced is set once a table of this process is to outlive a power cut.
var synced atomic.Bool

// Sync makes every file that this process writes by Local from now on durable before its Close
// returns: the file, and its name in each folder that was made for it.
func Sync() { synced.Store(true) }

// Create implements io.WriteFileIO.
func (Local) Create(name string) (io.FileWriter, error) {
	p, made, err := inFolder("create", name)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(p) //nolint:gosec // as for Open
	if err != nil || !synced.Load() {
		return f, err
	}
	return durable{f, made}, nil
}

// WriteFile implements io.WriteFileIO. It replaces the file as a whole: whoever reads a file that
// is written again, such as one that pins a state of the past, sees the old or the new content, and
// a kill leaves one of them.
func (Local) WriteFile(name string, content []byte) error {
	p, made, err := inFolder("create", name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), partial) // orphans are removed by maintenance
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644)) // other engines read it, as other users
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

// partial is the name of a file that is not written yet, except for a random number.
const partial = "*.part"

// durable is a file that is synced before it is closed, and then the folders that name it.
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

// syncFolder is a variable, so that a test can see which folders are synced.
var syncFolder = func(folder string) error {
	f, err := os.Open(folder) //nolint:gosec // a table's folder
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// inFolder returns the path of a file that is about to be made, whose folder is there; and the
// folders that have a new name in them then.
func inFolder(op, name string) (p string, folders []string, err error) {
	if p, err = resolve(op, name); err != nil {
		return "", nil, err
	}
	for folder := filepath.Dir(p); ; folder = filepath.Dir(folder) {
		folders = append(folders, folder)
		if _, err := os.Stat(folder); err == nil || folder == filepath.Dir(folder) {
			break
		}
	}
	return p, folders, os.MkdirAll(filepath.Dir(p), 0o755) //nolint:gosec // as for WriteFile
}

// asWritten returns what AsWritten says. Both names are of one file, so that a program which
// decodes the location continues, too; where a file system has no such names, it is copied.
func (Local) asWritten(name string) (bool, error) {
	written, _ := localPath(name)
	stands, err := resolve("link", name)
	if err != nil || stands == written {
		return false, err
	}
	if _, err := os.Lstat(stands); err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(written), 0o755); err != nil { //nolint:gosec // as for WriteFile
		return false, err
	}
	if os.Link(stands, written) == nil {
		return true, nil
	}
	content, err := os.ReadFile(stands) //nolint:gosec // as for Open
	if err != nil {
		return false, err
	}
	under := written + ".part"                                  // nobody reads half of it
	if err := os.WriteFile(under, content, 0o644); err != nil { //nolint:gosec // as for WriteFile
		return false, err
	}
	return true, os.Rename(under, written)
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

// WalkDir implements io.ListableIO. It names files by their paths.
func (Local) WalkDir(root string, fn fs.WalkDirFunc) error {
	p, err := resolve("list", root)
	if err != nil {
		return err
	}
	return filepath.WalkDir(p, fn)
}
