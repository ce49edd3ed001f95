// Package s3 starts a private S3 server for tests, versitygw on a temporary folder. A Proxy can
// break calls to it.
//
// Objects are files below the folder, and buckets are its top-level folders. Requests must be
// signed: by the root account, or by a second one, for tests in which other engines have
// credentials of their own.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/millrace/millrace/test/servers/process"
)

// Config is how to reach a server. Requests must have the bucket in the path.
type Config struct {
	Endpoint             string // http://host:port
	Region               string
	AccessKey, SecretKey string
	Bucket               string // exists, and is empty at first
	// Other is another account with the same rights.
	Other Keys
}

// Keys are the credentials of an account.
type Keys struct{ AccessKey, SecretKey string }

// Server is one S3 server for a test binary. The zero Server starts with the first test that needs
// it, and TestMain stops it. Data survives Kill and Restart, and Stop removes it. Kill, Pause,
// Restart and the rest come from process.Server.
type Server struct {
	once   sync.Once
	err    error
	dir    string
	config Config

	process.Server
}

// Config starts the server if necessary, and returns how to reach it. If it is not installed, the
// test is skipped or fails: see process.SkipOrFail.
func (s *Server) Config(tb testing.TB) Config {
	tb.Helper()
	c, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "S3", err)
	}
	return c
}

// Start starts the server once, and returns how to reach it.
func (s *Server) Start() (Config, error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.config, s.err
}

// bucket is the only bucket.
const bucket = "lake"

// start creates the bucket and the accounts, and runs the server. The secrets have characters that
// a URL would change, so a client that does not escape them fails.
func (s *Server) start() error {
	if _, err := process.InstallDir("s3"); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	if s.dir, err = s.Folder("millrace-s3-"); err != nil {
		return err
	}
	// Top-level folders are buckets.
	for _, d := range []string{filepath.Join("data", bucket), "attributes"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	s.config = Config{ //nolint:gosec // no secret: it opens what a test has made
		Endpoint: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), Region: "us-east-1",
		AccessKey: "millrace", SecretKey: "s3-Secret/of+tests", Bucket: bucket, Other: Keys{"engines",
			"s3-Secret/of+engines"},
	}
	accounts := fmt.Sprintf(`{"accessAccounts": {%[1]q: {"access": %[1]q, "secret": %[2]q, "role": "admin"}}}`,
		s.config.Other.AccessKey, s.config.Other.SecretKey)
	if err := os.Mkdir(s.accounts(), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.accounts(), "users.json"), []byte(accounts), 0o600); err != nil {
		return err
	}
	return s.run()
}

// accounts is the folder with the file of the accounts besides root.
func (s *Server) accounts() string { return filepath.Join(s.dir, "accounts") }

// run starts the program on the existing data.
func (s *Server) run() error {
	bin, err := process.InstallDir("s3")
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	// No --keep-alive: with it, multipart uploads fail.
	args := []string{"--port", s.config.Endpoint[len("http://"):], "--region", s.config.Region, "--iam-dir",
		s.accounts(), "--quiet", "posix"}
	// The server stores metadata of objects in extended attributes, which some file systems of
	// temporary folders lack. Then it stores them in files of a second folder.
	if syscall.Setxattr(data, "user.millrace", []byte("1"), 0) != nil {
		args = append(args, "--sidecar", filepath.Join(s.dir, "attributes"))
	}
	return s.Launch(context.Background(), process.Command{
		Name: "versitygw", Path: filepath.Join(bin, "versitygw"), Args: append(args, data), Dir: s.dir,
		// A refusal for lack of keys shows that it is ready.
		Ready: process.HTTPReady(s.config.Endpoint+"/", http.StatusForbidden),
		Env:   []string{"ROOT_ACCESS_KEY=" + s.config.AccessKey, "ROOT_SECRET_KEY=" + s.config.SecretKey},
	})
}
