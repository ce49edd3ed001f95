package auth_test

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/polltest"
)

func open(t *testing.T, path string) *auth.Tokens {
	t.Helper()
	tokens, err := auth.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// An access token is valid in every process with the same file of tokens, and in no other.
func TestAccessTokens(t *testing.T) {
	t.Parallel()
	path := file(t, "anna:"+anna+"\nbert:"+bert+"\n")
	one, other := open(t, path), open(t, path)
	access, known := one.Issue("anna", time.Now().Add(time.Minute))
	if !known || strings.Contains(access, anna) {
		t.Fatalf("%q, %v", access, known)
	}
	for name, tokens := range map[string]*auth.Tokens{"who issued it": one, "another process": other} {
		for _, token := range []string{access, anna} {
			if caller, _, err := tokens.Access(token); caller != "anna" || err != nil {
				t.Errorf("%s: %q, %v", name, caller, err)
			}
		}
	}
	if _, known := one.Caller(access); known {
		t.Error("an access token is taken for the caller's own")
	}
	if _, known := one.Issue("carl", time.Now().Add(time.Minute)); known {
		t.Error("a token for somebody unknown")
	}
	old, _ := one.Issue("anna", time.Now().Add(-time.Second))
	longer, _ := one.Issue("anna", time.Now().Add(time.Hour))
	parts, more := strings.Split(access, "."), strings.Split(longer, ".")
	berts, _ := open(t, file(t, "anna:"+bert+"\n")).Issue("anna", time.Now().Add(time.Minute))
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"expired":            {old, auth.ErrExpired},
		"made longer":        {strings.Join([]string{parts[0], parts[1], more[2], parts[3]}, "."), auth.ErrUnknown},
		"of another":         {strings.Join([]string{parts[0], "YmVydA", parts[2], parts[3]}, "."), auth.ErrUnknown},
		"by another's token": {berts, auth.ErrUnknown},
		"cut":                {access[:len(access)-1], auth.ErrUnknown},
		"the prefix alone":   {"mra1.", auth.ErrUnknown},
		"unsigned":           {strings.Join(parts[:3], ".") + ".", auth.ErrUnknown},
		"nothing":            {"", auth.ErrUnknown},
	} {
		if _, _, err := other.Access(c.token); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

// When a caller is removed from the file, its access tokens end, too. Two tokens with one name are
// allowed, so that tokens can be changed.
func TestAccessTokenEndsWithItsToken(t *testing.T) {
	t.Parallel()
	path := file(t, "anna:"+anna+"\n")
	tokens := open(t, path)
	access, _ := tokens.Issue("anna", time.Now().Add(time.Hour))
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("anna:" + bert + "\nanna:" + anna + "\n")
	polltest.Until(t, "the second token is known", func() bool { _, known := tokens.Caller(bert); return known })
	if caller, _, err := tokens.Access(access); caller != "anna" || err != nil {
		t.Errorf("while both are there: %q, %v", caller, err)
	}
	write("anna:" + bert + "\n#\n")
	polltest.Until(t, "the first token is out", func() bool { _, _, err := tokens.Access(access); return errors.Is(err, auth.ErrUnknown) })
}
