package clickhouse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// EnvLibraryPath is the environment variable with the path of libchdb.so, if the configuration has
// none.
const EnvLibraryPath = "MILLRACE_CHDB_LIBRARY"

// ErrNoLibrary is wrapped by FindLibrary's errors. Their text says what to run.
var ErrNoLibrary = errors.New("libchdb.so, the embedded ClickHouse engine, is not there")

// FindLibrary returns the path of libchdb.so. It is configured, if that is not empty, or the value
// of EnvLibraryPath. Otherwise FindLibrary looks beside the running binary, and where `make tools`
// installs it in the binary's folder, in the parent of that, or in the working directory.
func FindLibrary(configured string) (string, error) {
	for _, said := range []struct{ by, path string }{{"clickhouse.library", configured}, {EnvLibraryPath, os.Getenv(EnvLibraryPath)}} {
		if said.path == "" {
			continue
		}
		if !isFile(said.path) {
			return "", fmt.Errorf("%w: %s says %s", ErrNoLibrary, said.by, said.path)
		}
		return filepath.Abs(said.path)
	}
	installed := filepath.Join(".tools", "npm", "node_modules", packageName(), "libchdb.so")
	var looked []string
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		looked = append(looked, filepath.Join(dir, "libchdb.so"), filepath.Join(dir, installed), filepath.Join(filepath.Dir(dir), installed))
	}
	if dir, err := os.Getwd(); err == nil {
		looked = append(looked, filepath.Join(dir, installed))
	}
	for _, path := range looked {
		if isFile(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: run `make tools` (or `npm install --prefix .tools/npm %s@26.7.3-stable.1`), or name the file in clickhouse.library or %s; looked at %s",
		ErrNoLibrary, packageName(), EnvLibraryPath, strings.Join(looked, ", "))
}

// packageName returns the npm package with the library for this machine.
func packageName() string {
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	if runtime.GOOS == "linux" {
		return "@chdb/lib-linux-" + arch + "-gnu"
	}
	return "@chdb/lib-" + runtime.GOOS + "-" + arch
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
