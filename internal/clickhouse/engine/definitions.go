package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// definitions protects the files with the definitions of tables. If the disk is full, ClickHouse 26.7
// reports success for CREATE and ALTER although the file is empty, and with it the table is gone at
// the next start. So the files are checked after each such statement. If one is empty, the statement
// is undone and fails:
//
//   - A table that was created is dropped. Nobody else can have used it yet: callers create a table
//     before they use it, and these statements run one at a time.
//   - The definition that was altered is restored from a hard link, which needs no space. The change
//     stays in memory until the engine starts again.
type definitions struct {
	folder string        // of the tables
	turn   chan struct{} // holds a value while a statement may write definitions
}

func newDefinitions(folder string) *definitions {
	return &definitions{folder: folder, turn: make(chan struct{}, 1)}
}

// Statements that write definitions, and those that replace existing ones.
var (
	definingStatement = regexp.MustCompile(`(?i)^\s*(CREATE|ALTER|RENAME|EXCHANGE|REPLACE|ATTACH)\s`)
	alterStatement    = regexp.MustCompile(`(?i)^\s*ALTER\s`)
)

// change runs a statement. drop drops a table of the database features.
func (d *definitions) change(
	ctx context.Context, statement string, run func() error, drop func(table string) error,
) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if alterStatement.MatchString(statement) {
		if err := keepDefinitions(d.folder); err != nil {
			return fmt.Errorf("keep the definitions of the tables: %w", err)
		}
	}
	err := run()
	restored, lost, restoreErr := restoreDefinitions(d.folder)
	if restoreErr != nil {
		return errors.Join(err, fmt.Errorf("restore the definitions of the tables: %w", restoreErr))
	}
	for _, path := range lost {
		if dropErr := drop(strings.TrimSuffix(filepath.Base(path), definitionSuffix)); dropErr != nil {
			err = errors.Join(err, fmt.Errorf("drop a table whose definition is lost: %w", dropErr))
		}
	}
	if err == nil && restored+len(lost) > 0 {
		err = errNoSpace
	}
	return err
}

// errNoSpace is the error of a statement that could not write a definition.
var errNoSpace = &clickhouse.Error{
	Code: clickhouse.CodeNoSpace, Name: "NOT_ENOUGH_SPACE",
	Message: "The disk is full: the definition of a table could not be written, and the statement was undone.",
}

// The folder of hard links, in that of the tables. A link is named after the folder and the file of
// its definition.
const (
	keptFolder       = "definitions"
	definitionSuffix = ".sql"
)

// keepDefinitions links the definitions of all tables.
func keepDefinitions(folder string) error {
	kept := filepath.Join(folder, keptFolder)
	if err := errors.Join(os.RemoveAll(kept), os.Mkdir(kept, 0o700)); err != nil {
		return err
	}
	all, err := tableDefinitions(folder)
	if err != nil {
		return err
	}
	for _, path := range all {
		name := filepath.Base(filepath.Dir(path)) + "." + filepath.Base(path)
		if err := os.Link(path, filepath.Join(kept, name)); err != nil {
			return err
		}
	}
	return nil
}

// restoreDefinitions replaces empty definitions by their links, and removes the links. It returns
// how many it has replaced, and the paths of the others.
func restoreDefinitions(folder string) (restored int, lost []string, err error) {
	all, err := tableDefinitions(folder)
	if err != nil {
		return 0, nil, err
	}
	kept := filepath.Join(folder, keptFolder)
	for _, path := range all {
		if info, err := os.Stat(path); err != nil || info.Size() > 0 {
			continue // ClickHouse reports files that it cannot read
		}
		link := filepath.Join(kept, filepath.Base(filepath.Dir(path))+"."+filepath.Base(path))
		switch info, err := os.Stat(link); {
		case err != nil || info.Size() == 0:
			lost = append(lost, path)
		default:
			if err := os.Rename(link, path); err != nil {
				return restored, lost, err
			}
			restored++
		}
	}
	return restored, lost, os.RemoveAll(kept)
}

// tableDefinitions returns the paths of the definitions of tables. ClickHouse writes one under
// another name, and renames it.
func tableDefinitions(folder string) ([]string, error) {
	return filepath.Glob(filepath.Join(folder, "store", "*", "*", "*"+definitionSuffix))
}
