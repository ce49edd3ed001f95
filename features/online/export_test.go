package online

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/redis"
)

// Read reads a snapshot of size bytes.
func (s *Store) Read(r io.Reader, size int64) error { return s.read(r, size) }

// Write writes a snapshot.
func (s *Store) Write(w io.Writer) error { return s.write(w) }

// WriteFrame writes a frame of a snapshot.
func WriteFrame(w io.Writer, kind byte, content []byte) error { return writeFrame(w, kind, content) }

// Use makes a Shared answer from the current epoch as it is now.
func (s *Shared) Use(ctx context.Context) error {
	r := NewSharedRunner(s, Config{Logger: slog.New(slog.DiscardHandler)})
	if err := r.look(ctx, &goal{}); err != nil {
		return err
	}
	s.state.Load().ready.Store(true)
	return r.count(ctx)
}

// Begin replaces the current epoch by an empty one, and returns it.
func (s *Shared) Begin(ctx context.Context) (string, error) {
	before, _ := s.facts.Epoch(ctx) // none at first
	now := time.Now()
	b, err := s.facts.Build(ctx, before, now, now.Add(time.Minute))
	if err != nil {
		return "", err
	}
	return b.Finish(ctx)
}

// Facts returns where the facts are.
func (s *Shared) Facts() *redis.Facts { return s.facts }

// ParseStoredFact parses a field of an entity of groups, and its value.
func ParseStoredFact(groups []*features.Group, field, value string) (key string, err error) {
	d, err := define(groups)
	if err != nil {
		return "", err
	}
	a := newAssembler()
	e, err := a.entity(d.spaces[0], []string{field, value})
	if err != nil {
		return "", err
	}
	for _, s := range e {
		if s != nil && len(s.rows) > 0 {
			key += string(unpackKey(nil, s.key(s.rows)))
		}
	}
	return key, nil
}

// StoredFact returns the field and the value of a fact of the first source of groups.
func StoredFact(groups []*features.Group, f features.Fact) (field, value string, err error) {
	d, err := define(groups)
	if err != nil {
		return "", "", err
	}
	e := redis.FactEntity{}
	addFact(&e, d.spaces[0].sources[0], 0, &f)
	return e.Values[0].Field, strings.Clone(e.Values[0].Value), nil
}

// SharedName returns the name of the facts of groups.
func SharedName(groups []*features.Group) string { return sharedName(Fingerprint(groups)) }
