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

// Errors of Access. ErrUnknown is also the error for a damaged or forged access token.
var (
	ErrUnknown = errors.New("unknown token")
	ErrExpired = errors.New("access token has expired")
)

const accessPrefix = "mra1." // no token in the file starts with it

// Issue returns an access token of a caller, which expires at until, to the second. Every process
// that reads the same file of tokens accepts it. It is not stored: it is signed with the caller's
// own token, so it ends when that token is removed from the file.
func (t *Tokens) Issue(name string, until time.Time) (access string, known bool) {
	for _, c := range t.current() {
		if c.name == name {
			payload := base64.RawURLEncoding.EncodeToString([]byte(name)) + "." + strconv.FormatInt(until.Unix(), 36)
			return accessPrefix + payload + "." + c.sign(payload), true
		}
	}
	return "", false
}

// Access returns the caller of a token or an access token, and when it expires. The time is zero
// for a token, which does not expire.
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
	payload, signature := rest[:at], rest[at+1:]
	for _, c := range t.current() {
		// The signature also proves the caller: each caller's key is its own token.
		if hmac.Equal([]byte(c.sign(payload)), []byte(signature)) {
			until, err := expiry(payload)
			return c.name, until, err
		}
	}
	return "", time.Time{}, ErrUnknown
}

// expiry returns when an access token expires. Its signature must have been checked.
func expiry(payload string) (time.Time, error) {
	_, text, _ := strings.Cut(payload, ".")
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

// sign returns the signature of an access token. Its key is the hash of the caller's token.
func (c caller) sign(payload string) string {
	mac := hmac.New(sha256.New, c.sum[:])
	mac.Write([]byte("millrace access token\x00" + c.name + "\x00" + payload))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
