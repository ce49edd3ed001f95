package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Errors of Access.
var (
	ErrUnknown = errors.New("no caller has this token")
	ErrExpired = errors.New("this access token has expired")
)

const accessPrefix = "mra1." // no token in the file begins so

// Issue returns an access token of a caller: text that Access knows until then, to the second, in
// every process that reads the same file, and no longer than the caller's own token stays in it.
// Nothing is kept of it: it is signed with that token.
func (t *Tokens) Issue(name string, until time.Time) (access string, known bool) {
	for _, c := range t.current() {
		if c.name == name {
			said := base64.RawURLEncoding.EncodeToString([]byte(name)) + "." + strconv.FormatInt(until.Unix(), 36)
			return accessPrefix + said + "." + c.sign(said), true
		}
	}
	return "", false
}

// Access returns the name of whom an access token was issued to, or a token belongs to, and when it
// expires: never is the zero time.
func (t *Tokens) Access(token string) (name string, until time.Time, err error) {
	rest, issued := strings.CutPrefix(token, accessPrefix)
	if !issued {
		if name, known := t.Caller(token); known {
			return name, time.Time{}, nil
		}
		return "", time.Time{}, ErrUnknown
	}
	at := strings.LastIndexByte(rest, '.')
	if at < 0 {
		return "", time.Time{}, ErrUnknown
	}
	said, signature := rest[:at], rest[at+1:]
	for _, c := range t.current() {
		if hmac.Equal([]byte(c.sign(said)), []byte(signature)) {
			until, err := expiry(said)
			return c.name, until, err
		}
	}
	return "", time.Time{}, ErrUnknown
}

// expiry looks at what an access token says, once it is known for ours.
func expiry(said string) (time.Time, error) {
	_, text, _ := strings.Cut(said, ".")
	seconds, err := strconv.ParseInt(text, 36, 64)
	if err != nil {
		return time.Time{}, ErrUnknown
	}
	until := time.Unix(seconds, 0)
	if !time.Now().Before(until) {
		return until, ErrExpired
	}
	return until, nil
}

func (c caller) sign(said string) string {
	mac := hmac.New(sha256.New, c.sum[:])
	mac.Write([]byte("millrace access token\x00" + c.name + "\x00" + said))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
