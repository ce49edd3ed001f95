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

// Issue makes an access token of a caller: text that Access knows for so long, in every process that reads the same file, and
// no longer than the caller's own token stays in it. Nothing is kept of it: it is signed with that token.
func (t *Tokens) Issue(name string, lifetime time.Duration) (access string, known bool) {
	for _, c := range t.current() {
		if c.name == name {
			said := base64.RawURLEncoding.EncodeToString([]byte(name)) + "." + strconv.FormatInt(time.Now().Add(lifetime).Unix(), 36)
			return accessPrefix + said + "." + c.sign(said), true
		}
	}
	return "", false
}

// Access is the name of whom an access token was issued to, or a token belongs to.
func (t *Tokens) Access(token string) (name string, err error) {
	rest, issued := strings.CutPrefix(token, accessPrefix)
	if !issued {
		if name, known := t.Caller(token); known {
			return name, nil
		}
		return "", ErrUnknown
	}
	at := strings.LastIndexByte(rest, '.')
	if at < 0 {
		return "", ErrUnknown
	}
	said, signature := rest[:at], rest[at+1:]
	for _, c := range t.current() {
		if hmac.Equal([]byte(c.sign(said)), []byte(signature)) {
			return c.name, expired(said)
		}
	}
	return "", ErrUnknown
}

// expired looks at what an access token says, once it is known for ours.
func expired(said string) error {
	_, until, _ := strings.Cut(said, ".")
	seconds, err := strconv.ParseInt(until, 36, 64)
	if err != nil {
		return ErrUnknown
	}
	if !time.Now().Before(time.Unix(seconds, 0)) {
		return ErrExpired
	}
	return nil
}

func (c caller) sign(said string) string {
	mac := hmac.New(sha256.New, c.sum[:])
	mac.Write([]byte("millrace access token\x00" + c.name + "\x00" + said))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
