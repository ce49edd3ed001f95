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
var ErrNoLibrary = errors.New("libchdb.so, the embedded ClickHouse engine, was not found")

// FindLibrary returns the path of libchdb.so. It is configured, if that is not empty, or the value
// of EnvLibraryPath. Otherwise FindLibrary looks beside the running binary, and where `make tools`
// installs it in the binary's folder, in the parent of that, or in the working directory.
func FindLibrary(configured string) (string, error) {
	for _, setting := range []struct{ name, path string }{
		{"clickhouse.library", configured}, {EnvLibraryPath, os.Getenv(EnvLibraryPath)},
	} {
		if setting.path == "" {
			continue
		}
		if !isFile(setting.path) {
			return "", fmt.Errorf("%w: %s is %s", ErrNoLibrary, setting.name, setting.path)
		}
		return filepath.Abs(setting.path)
	}
	installed := filepath.Join(".tools", "npm", "node_modules", packageName(), "libchdb.so")
	var candidates []string
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		candidates = append(candidates, filepath.Join(dir, "libchdb.so"),
			filepath.Join(dir, installed), filepath.Join(filepath.Dir(dir), installed))
	}
	if dir, err := os.Getwd(); err == nil {
		candidates = append(candidates, filepath.Join(dir, installed))
	}
	for _, path := range candidates {
		if isFile(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: run `make tools` (or `npm install --prefix .tools/npm %s@26.7.3-stable.1`), "+
		"or set clickhouse.library or %s to its path; searched %s",
		ErrNoLibrary, packageName(), EnvLibraryPath, strings.Join(candidates, ", "))
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

// isFile reports whether a regular file exists at path.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
