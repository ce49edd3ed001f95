package location

import (
	"context"
	"errors"
	"fmt"
	stdio "io"
	"io/fs"

	"github.com/apache/iceberg-go/io"
)

// ErrOutside reports that a file is outside of the folder of the table that refers to it.
var ErrOutside = errors.New("outside of the table's folder")

// Fence returns a file system that is limited to a table's folder, wherever a file name comes from:
// a record, a property, or another engine's manifest. others are further folders of the table that
// earlier versions configured. Manifest lists written to it get the bounds that iceberg-go
// omits.
func Fence(files io.IO, location string, others ...string) io.IO {
	return fenced{files, location, others}
}

// fenced implements every interface of iceberg-go's file systems, because wrapping would otherwise
// hide the optional ones.
type fenced struct {
	files    io.IO
	location string
	others   []string
}

// check returns an error for a file outside of the fence.
func (f fenced) check(op, name string) error {
	if Inside(f.location, name) {
		return nil
	}
	for _, folder := range f.others {
		if Inside(folder, name) {
			return nil
		}
	}
	return &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("%w, %s", ErrOutside, f.location)}
}

// Open implements io.IO.
func (f fenced) Open(name string) (io.File, error) {
	if err := f.check("open", name); err != nil {
		return nil, err
	}
	return f.files.Open(name)
}

// ReadFile implements io.ReadFileIO.
func (f fenced) ReadFile(name string) (content []byte, err error) {
	if err := f.check("open", name); err != nil {
		return nil, err
	}
	if whole, ok := f.files.(io.ReadFileIO); ok {
		return whole.ReadFile(name)
	}
	file, err := f.files.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return stdio.ReadAll(file)
}

// errReadOnly reports that the underlying file system has no WriteFileIO.
var errReadOnly = errors.New("the file system is read-only")

// Create implements io.WriteFileIO.
func (f fenced) Create(name string) (io.FileWriter, error) {
	if err := f.check("create", name); err != nil {
		return nil, err
	}
	w, ok := f.files.(io.WriteFileIO)
	if !ok {
		return nil, &fs.PathError{Op: "create", Path: name, Err: errReadOnly}
	}
	out, err := w.Create(name)
	if err != nil || !isManifestList(name) {
		return out, err
	}
	return &manifestList{out: out, files: f}, nil
}

// WriteFile implements io.WriteFileIO.
func (f fenced) WriteFile(name string, content []byte) error {
	if err := f.check("create", name); err != nil {
		return err
	}
	w, ok := f.files.(io.WriteFileIO)
	if !ok {
		return &fs.PathError{Op: "create", Path: name, Err: errReadOnly}
	}
	return w.WriteFile(name, content)
}

// Remove implements io.IO.
func (f fenced) Remove(name string) error {
	if err := f.check("remove", name); err != nil {
		return err
	}
	return f.files.Remove(name)
}

// DeleteFiles implements io.BulkRemovableIO. Files outside of the folders are kept and reported as
// errors.
func (f fenced) DeleteFiles(ctx context.Context, names []string) (deleted []string, err error) {
	var errs []error
	// Names outside of the fence do not prevent the deletion of the others.
	var inside []string
	for _, name := range names {
		if err := f.check("remove", name); err != nil {
			errs = append(errs, err)
			continue
		}
		inside = append(inside, name)
	}
	if bulk, ok := f.files.(io.BulkRemovableIO); ok {
		deleted, err = bulk.DeleteFiles(ctx, inside)
		return deleted, errors.Join(append(errs, err)...)
	}
	for _, name := range inside {
		if err := ctx.Err(); err != nil {
			return deleted, errors.Join(append(errs, err)...)
		}
		if err := f.files.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		deleted = append(deleted, name)
	}
	return deleted, errors.Join(errs...)
}

// Stat implements io.StatIO.
func (f fenced) Stat(name string) (fs.FileInfo, error) {
	if err := f.check("stat", name); err != nil {
		return nil, err
	}
	if s, ok := f.files.(io.StatIO); ok {
		return s.Stat(name)
	}
	file, err := f.files.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	return info, errors.Join(err, file.Close())
}

// restore implements Restore within the fence.
func (f fenced) restore(name string) (bool, error) {
	if err := f.check("link", name); err != nil {
		return false, err
	}
	return Restore(f.files, name)
}

// Restore makes a file available at its location exactly as written, and reports whether that was
// necessary. Earlier versions decoded locations when they wrote files, so programs that do not
// decode them cannot find these files: see Local.
func Restore(files io.IO, name string) (made bool, err error) {
	if l, ok := files.(interface {
		restore(name string) (bool, error)
	}); ok {
		return l.restore(name)
	}
	return false, nil
}

// WalkDir implements io.ListableIO.
func (f fenced) WalkDir(root string, fn fs.WalkDirFunc) error {
	if !Inside(f.location, root+"/x") {
		return f.check("list", root)
	}
	listable, ok := f.files.(io.ListableIO)
	if !ok {
		return &fs.PathError{Op: "list", Path: root, Err: errors.New("the file system does not support listing")}
	}
	return listable.WalkDir(root, fn)
}
