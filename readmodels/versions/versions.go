// Package versions builds the next version of a view beside the one that serves.
//
// A view begins with one version, which has no name. A replay adds a version with a name of its own
// (State.Start). Its documents, positions and dead letters are separate, so the log fills it from the
// beginning while the other one answers queries. Once it has applied what the serving one has, the
// two are compared (Compare), and it is swapped in (State.Swap). The old version continues to follow
// the log, so it can be swapped back (State.Rollback), until it is dropped.
//
// State is the record of a view's versions, and its methods are the permitted changes. They are pure.
// Registry keeps the record in a Store that all processes share, and changes it by compare-and-set.
//
// Invariants: exactly one version serves. It is never one that is being dropped. Every change raises
// the revision, so a process can tell an older record, which a sink that lost data returns, from the
// newest one that it has seen.
package versions

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxVersions bounds the versions of a view. Each one costs as much as the view.
	MaxVersions = 4
	// dropAfter is how long a version that served is kept at least. All processes have noticed the
	// swap by then.
	dropAfter = 10 * time.Second
	// maxRecord bounds the encoded record.
	maxRecord = 16 << 10
)

// State is the record of a view's versions.
type State struct {
	Revision uint64    `json:"revision"`
	Serving  string    `json:"serving"`
	Previous *string   `json:"previous,omitempty"` // what Rollback makes serve; nil if nothing
	Next     int       `json:"next"`               // number of the next version without a chosen name
	Versions []Version `json:"versions"`           // in the order of their creation
}

// Version is one version of a view.
type Version struct {
	Name    string    `json:"name"`              // empty for the one that the view began with
	Created time.Time `json:"created,omitzero"`  // zero if Name is empty
	Rate    int       `json:"rate,omitempty"`    // records per second in each process while it is filled; 0: no limit
	Built   time.Time `json:"built,omitzero"`    // when it first had applied the whole log
	Since   time.Time `json:"since,omitzero"`    // when it began to serve
	Until   time.Time `json:"until,omitzero"`    // when it ceased to serve
	Dropped bool      `json:"dropped,omitempty"` // its documents are being deleted
	// Projection is the number of the projection that has built it, 0 if that is not known.
	Projection int `json:"projection,omitempty"`
}

// RefusedError is a change that the state does not permit.
type RefusedError struct{ reason string }

func (e *RefusedError) Error() string { return e.reason }

func refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }

// Initial returns the state of a view without a record.
func Initial() State { return State{Next: 2, Versions: []Version{{}}} }

// Sink returns the name of a version's sink: "orderstatus/v2", "orderstatus/v2@2".
func Sink(view, version string) string {
	if version == "" {
		return view
	}
	return view + "@" + version
}

// ParseSink returns the view and the version of a sink.
func ParseSink(sink string) (view, version string) {
	view, version, _ = strings.Cut(sink, "@")
	return view, version
}

// validName is the form of a name. It is a part of keys, of consumer groups and of file names.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Parse reads what Encode returned. An empty text is the initial state.
func Parse(record string) (State, error) {
	if record == "" {
		return Initial(), nil
	}
	if len(record) > maxRecord {
		return State{}, fmt.Errorf("record of versions: %d bytes are too many", len(record))
	}
	var s State
	if err := json.Unmarshal([]byte(record), &s); err != nil {
		return State{}, fmt.Errorf("record of versions: %w", err)
	}
	return s, s.check()
}

// check returns an error if an invariant does not hold.
func (s State) check() error {
	seen := map[string]bool{}
	for _, v := range s.Versions {
		if v.Name != "" && !validName.MatchString(v.Name) || seen[v.Name] || v.Rate < 0 {
			return fmt.Errorf("record of versions: version %q is not valid", v.Name)
		}
		seen[v.Name] = true
	}
	serving := s.find(s.Serving)
	if serving == nil || serving.Dropped {
		return fmt.Errorf("record of versions: version %q serves, but does not exist", s.Serving)
	}
	if len(s.Versions) > MaxVersions || s.Next < 0 {
		return fmt.Errorf("record of versions: %d versions are too many", len(s.Versions))
	}
	return nil
}

// Encode returns the record's text.
func (s State) Encode() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("record of versions: %w", err)
	}
	return string(b), nil
}

// find returns a version, or nil.
func (s State) find(name string) *Version {
	for i := range s.Versions {
		if s.Versions[i].Name == name {
			return &s.Versions[i]
		}
	}
	return nil
}

// Find returns a version. ok is false if it does not exist.
func (s State) Find(name string) (v Version, ok bool) {
	if found := s.find(name); found != nil {
		return *found, true
	}
	return Version{}, false
}

// Candidate returns the version that is not swapped in yet. It is the last one, because a replay
// without a name continues it. ok is false if every version has served or is being dropped.
func (s State) Candidate() (v Version, ok bool) {
	for _, v := range slices.Backward(s.Versions) {
		if v.Name != "" && v.Name != s.Serving && v.Since.IsZero() && !v.Dropped {
			return v, true
		}
	}
	return Version{}, false
}

// Start adds a version and returns its name. Without a name, it continues the candidate, or takes the
// next number. If the version exists, only its rate changes.
func (s *State) Start(name string, rate, projection int, now time.Time) (string, error) {
	if c, ok := s.Candidate(); ok && name == "" {
		name = c.Name
	}
	if name == "" {
		next := s.Next
		for s.find(strconv.Itoa(next)) != nil {
			next++
		}
		name = strconv.Itoa(next)
	}
	if !validName.MatchString(name) {
		return "", refuse("version %q: want up to 32 lower-case letters, digits and hyphens", name)
	}
	if v := s.find(name); v != nil {
		switch {
		case v.Dropped:
			return "", refuse("version %q is being dropped: try again in a few seconds, or choose another name", name)
		case v.Name == s.Serving || !v.Since.IsZero():
			return "", refuse("version %q was swapped in already: choose another name, or omit it", name)
		}
		v.Rate = rate
		return name, nil
	}
	if len(s.Versions) >= MaxVersions {
		return "", refuse("the view has %d versions already: drop one with `millrace replay drop`; "+
			"`millrace replay ls` lists them", len(s.Versions))
	}
	if n, err := strconv.Atoi(name); err == nil {
		s.Next = max(s.Next, n+1)
	}
	s.Versions = append(s.Versions, Version{Name: name, Created: now, Rate: rate, Projection: projection})
	return name, nil
}

// SetProjection records which projection builds a version that is empty.
func (s *State) SetProjection(name string, projection int) {
	if v := s.find(name); v != nil {
		v.Projection = projection
	}
}

// SetBuilt records that a version has applied the whole log.
func (s *State) SetBuilt(name string, now time.Time) {
	if v := s.find(name); v != nil && v.Built.IsZero() {
		v.Built = now
	}
}

// Swap makes a version serve. The caller has checked that it has applied what the serving one has.
func (s *State) Swap(name string, now time.Time) error {
	v := s.find(name)
	switch {
	case v == nil:
		return refuse("no version %q: `millrace replay ls` lists the versions", name)
	case v.Dropped:
		return refuse("version %q is being dropped", name)
	case name == s.Serving:
		return nil
	}
	old := s.find(s.Serving)
	old.Until = now
	previous := old.Name
	v.Since, v.Until = now, time.Time{}
	s.Serving, s.Previous = name, &previous
	return nil
}

// RollbackTo returns the version that Rollback makes serve.
func (s State) RollbackTo() (string, error) {
	if s.Previous == nil {
		return "", refuse("no version served before: `millrace replay ls` lists the versions, and " +
			"`millrace replay swap` makes one serve")
	}
	return *s.Previous, nil
}

// Drop marks a version for deletion.
func (s *State) Drop(name string, now time.Time) error {
	v := s.find(name)
	switch {
	case v == nil:
		return refuse("no version %q: `millrace replay ls` lists the versions", name)
	case name == s.Serving:
		return refuse("version %q serves: swap another one in first", name)
	case now.Sub(v.Until) < dropAfter:
		return refuse("version %q served until a moment ago, and some process may still read it: "+
			"try again in %d seconds", name, int(dropAfter.Seconds()))
	}
	v.Dropped = true
	if s.Previous != nil && *s.Previous == name {
		s.Previous = nil
	}
	return nil
}

// Remove removes a version whose documents are deleted.
func (s *State) Remove(name string) {
	s.Versions = slices.DeleteFunc(s.Versions, func(v Version) bool { return v.Name == name && v.Dropped })
}
