// Package auth authenticates callers by token and checks their rights. It guards every listener
// that is not on loopback.
//
// A token is a long random string, one per caller. Tokens are in a file that is read again when it
// changes, so they can be issued and revoked without a restart. access.go issues access tokens,
// which expire, and rights.go defines rights.
//
// Tokens.Guard authenticates a request and puts the caller's rights into its context. Behind it,
// Need checks one right for a request, and handlers check others with RightsIn. A request that no
// Guard has seen has no rights.
package auth

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// MinLength is the minimum length of a token in bytes. Shorter ones could be guessed.
const MinLength = 20

const checkInterval = time.Second // interval of checks for a changed file

// Tokens contains the callers' tokens and rights. It is safe for concurrent use.
type Tokens struct {
	path   string
	logger *slog.Logger
	rights map[string]Rights // by caller

	// mu protects the fields below.
	mu        sync.Mutex
	callers   []caller
	checkedAt time.Time // when the file was last checked
	modTime   time.Time // modification time of the file that was read
}

// caller is a caller and its token.
type caller struct {
	name string
	// sum is the hash of the token. Comparing hashes takes the same time for all tokens.
	sum [sha256.Size]byte
}

// Open reads a file with one line NAME:TOKEN per caller. Empty lines and lines that start with #
// are ignored.
func Open(path string, logger *slog.Logger) (*Tokens, error) {
	t := &Tokens{path: path, logger: logger}
	if err := t.read(); err != nil {
		return nil, err
	}
	return t, nil
}

// read reads the file. After an error, the callers remain as they were.
func (t *Tokens) read() error {
	info, err := os.Stat(t.path)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	b, err := os.ReadFile(t.path)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	var callers []caller
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, token, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return fmt.Errorf("tokens: %s, line %d: want NAME:TOKEN", t.path, n)
		}
		if len(token) < MinLength {
			return fmt.Errorf("tokens: %s, line %d: the token of %q has fewer than %d characters: create one with `openssl rand -hex 24`", t.path, n, name, MinLength)
		}
		if strings.HasPrefix(token, accessPrefix) {
			return fmt.Errorf("tokens: %s, line %d: the token of %q starts with %s, which is reserved for access tokens", t.path, n, name, accessPrefix)
		}
		callers = append(callers, caller{name, sha256.Sum256([]byte(token))})
	}
	if len(callers) == 0 {
		return fmt.Errorf("tokens: %s has no callers: add a line NAME:TOKEN", t.path)
	}
	t.callers, t.modTime = callers, info.ModTime()
	return nil
}

// Caller returns the caller with a token.
func (t *Tokens) Caller(token string) (name string, known bool) {
	sum := sha256.Sum256([]byte(token))
	for _, c := range t.current() {
		if subtle.ConstantTimeCompare(c.sum[:], sum[:]) == 1 {
			return c.name, true
		}
	}
	return "", false
}

// current returns the callers in the file. It reads the file again at most once per
// checkInterval, and only if it has changed. A file that cannot be read does not lock out the known
// callers.
func (t *Tokens) current() []caller {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.checkedAt) > checkInterval {
		t.checkedAt = now
		if info, err := os.Stat(t.path); err == nil && !info.ModTime().Equal(t.modTime) {
			if err := t.read(); err != nil {
				t.logger.Error("cannot reload the tokens; keeping the previous ones", "error", err)
				// Remember the bad file, so that it is reported once and not at every request.
				t.modTime = info.ModTime()
			}
		}
	}
	return t.callers
}

// key is the key of admitted in a request's context.
type key struct{}

// admitted is the caller of a request that Guard let pass.
type admitted struct {
	name   string
	rights Rights
}

// callerIn returns the caller in a request's context. Without a Guard it has neither name nor
// rights.
func callerIn(ctx context.Context) admitted {
	c, _ := ctx.Value(key{}).(admitted)
	return c
}

// CallerOf returns the caller of a request that Guard let pass. It is empty if no authentication is
// required.
func CallerOf(ctx context.Context) string { return callerIn(ctx).name }

// Guard lets requests pass that have "Authorization: Bearer TOKEN" with a known token, and requests
// to open paths. It refuses others as unauthenticated, in the format of their protocol. A nil
// Tokens lets everything pass, with all rights. Guard does not check rights; see Need.
func (t *Tokens) Guard(next http.Handler, open ...string) http.Handler {
	if t == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, admitted{rights: Everything()})))
		})
	}
	free := map[string]bool{}
	for _, path := range open {
		free[path] = true
	}
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if free[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		name, known := t.Caller(token)
		if ok && known {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, admitted{name, t.RightsOf(name)})))
			return
		}
		why := "unknown token"
		if !ok {
			why = "no token: send Authorization: Bearer TOKEN"
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		if refuse.IsSupported(r) {
			_ = refuse.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New(why)))
			return
		}
		http.Error(w, why, http.StatusUnauthorized)
	})
}
