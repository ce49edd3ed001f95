package tracking

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/event/behavior"
)

// anyOrigin allows pages of every origin.
const anyOrigin = "*"

// minKey is the minimum length of a write key in bytes. The write key of a page is public, but that
// of a server is a secret.
const minKey = 8

// maxRate is the largest rate in events per second.
const maxRate = 1_000_000

// Source is a website, an app or a server that sends events with a write key of its own.
type Source struct {
	Name    string
	Origins []string // of the pages that may send; empty: any
	Types   []string // of the events that it may send; empty: all
	Rate    int      // events per second that it may send to a process; 0: any
	sum     [sha256.Size]byte
	allowed *allowance // nil: no limit
}

// Sources are the known sources.
type Sources struct {
	list []*Source
	// origins are those of all sources. A preflight request has no write key, so it is answered for
	// all of them.
	origins []string
}

// The only source of a system without configured keys, and its key.
const (
	demoSource = "demo"
	DemoKey    = "demo-write-key"
)

// DemoSources returns the source "demo" with DemoKey. It is for systems that only this machine can
// reach.
func DemoSources() *Sources {
	s, _ := newSources(&Source{Name: demoSource, sum: sha256.Sum256([]byte(DemoKey))})
	return s
}

// ParseSources reads a YAML file of sources: {name: {key: …, origins: […], types: […], rate: …}}. No
// error contains a key.
func ParseSources(text []byte) (*Sources, error) {
	var file map[string]struct {
		Key     string   `yaml:"key"`
		Origins []string `yaml:"origins"`
		Types   []string `yaml:"types"`
		Rate    int      `yaml:"rate"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		// An error of yaml may quote a value, which could be a key.
		var fields *yaml.TypeError
		if errors.As(err, &fields) {
			return nil, errors.New("want {name: {key: …, origins: […], types: […], rate: …}}, and no other fields")
		}
		return nil, errors.New("it is not YAML")
	}
	var all []*Source
	for name, f := range file {
		s := &Source{Name: name, Origins: f.Origins, Types: f.Types, Rate: f.Rate,
			sum: sha256.Sum256([]byte(f.Key)), allowed: newAllowance(max(f.Rate, 0))}
		if err := s.check(len(f.Key)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if strings.ContainsFunc(f.Key, func(r rune) bool { return r <= ' ' || r == ':' || r > '~' }) {
			return nil, fmt.Errorf("%s: key: only printable ASCII characters without spaces and colons can be sent", name)
		}
		all = append(all, s)
	}
	return newSources(all...)
}

// check returns an error that names the field, if the source cannot work.
func (s *Source) check(keyLength int) error {
	if s.Name == "" || len(s.Name) > maxID || strings.ContainsFunc(s.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return errors.New("the name of a source has letters, digits, '-', '_' and '.' only")
	}
	if keyLength < minKey {
		return fmt.Errorf("key: fewer than %d characters: create one with `openssl rand -hex 16`", minKey)
	}
	for _, o := range s.Origins {
		u, err := url.Parse(o)
		if o != anyOrigin && (err != nil || u.Scheme == "" || u.Host == "" || o != u.Scheme+"://"+u.Host) {
			return fmt.Errorf("origins: %q is not an origin, such as https://shop.example", o)
		}
	}
	if s.Rate < 0 || s.Rate > maxRate {
		return fmt.Errorf("rate: %d events per second: want 1 to %d, or 0 for no limit", s.Rate, maxRate)
	}
	for _, t := range s.Types {
		if !slices.Contains(types, t) {
			return fmt.Errorf("types: %q is none of %s", t, strings.Join(types, ", "))
		}
	}
	return nil
}

// types of events, as clients send them.
var types = []string{
	behavior.Track, behavior.Identify, behavior.Page, behavior.Screen, behavior.Group, behavior.Alias,
}

// newSources returns a set of sources, which must have different keys.
func newSources(all ...*Source) (*Sources, error) {
	if len(all) == 0 {
		return nil, errors.New("there is no source: add one as {name: {key: …}}")
	}
	slices.SortFunc(all, func(a, b *Source) int { return strings.Compare(a.Name, b.Name) })
	s := &Sources{list: all}
	for i, one := range all {
		for _, other := range all[:i] {
			if one.sum == other.sum {
				return nil, fmt.Errorf("%s and %s have the same key", other.Name, one.Name)
			}
		}
		if len(one.Origins) == 0 {
			s.origins = append(s.origins, anyOrigin)
		}
		s.origins = append(s.origins, one.Origins...)
	}
	return s, nil
}

// find returns the source with a write key, or nil. It compares hashes with those of all sources, so
// the time that it takes tells nothing about the keys.
func (s *Sources) find(key string) (found *Source) {
	sum := sha256.Sum256([]byte(key))
	for _, one := range s.list {
		if subtle.ConstantTimeCompare(one.sum[:], sum[:]) == 1 {
			found = one
		}
	}
	return found
}

// allowOrigin returns the value of Access-Control-Allow-Origin for a page of an origin, or "" if it
// is not allowed.
func allowOrigin(allowed []string, origin string) string {
	switch {
	case len(allowed) == 0 || slices.Contains(allowed, anyOrigin):
		return anyOrigin
	case slices.Contains(allowed, origin):
		return origin
	}
	return ""
}
