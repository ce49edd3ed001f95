package kafka

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// DamageError means that a file of the log is damaged and nothing else on disk can replace it.
type DamageError struct {
	File   string
	Damage string
	Remedy string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged: %s; %s", e.File, e.Damage, e.Remedy)
}

// errChecksum means that a sealed file is damaged. Its first line is the checksum of the rest.
var errChecksum = errors.New("the checksum does not match")

// writeSealed replaces a sealed file atomically and durably.
func writeSealed(name string, content []byte) error {
	sum := sha256.Sum256(content)
	return writeFile(name, append(append([]byte(hex.EncodeToString(sum[:])), '\n'), content...))
}

// readSealed returns the content of a sealed file. It returns errChecksum if the checksum does not
// match.
func readSealed(name string) ([]byte, error) {
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if err != nil {
		return nil, err
	}
	seal, content, ok := bytes.Cut(raw, []byte("\n"))
	sum := sha256.Sum256(content)
	if !ok || string(seal) != hex.EncodeToString(sum[:]) {
		return nil, errChecksum
	}
	return content, nil
}

// writeFile replaces a file atomically and durably.
func writeFile(name string, content []byte) error {
	// In the same folder, so that the rename is atomic.
	temporary := name + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// The rename replaces the file atomically: a kill leaves the old or the new content.
	if err := os.Rename(temporary, name); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(name)) // it contains the name, so it must be synced, too
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// asideSuffix is appended to the names of files that are set aside.
const asideSuffix = ".damaged"

// setAside renames a damaged file and logs that. Only the most recent one is kept. instead
// describes the replacement.
func setAside(name string, log *slog.Logger, damage error, instead string) error {
	aside := name + asideSuffix
	log.Warn("embedded kafka: a damaged file of the log was set aside", "file", name, "set_aside", aside,
		"damage", damage, "instead", instead)
	err := errors.Join(os.RemoveAll(aside), os.Rename(name, aside))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set aside a damaged file: %w", err)
	}
	return nil
}
