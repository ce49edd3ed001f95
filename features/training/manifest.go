package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/decode"
	"github.com/millrace/millrace/internal/duration"
)

// Manifest says how a training set was made. Repeat makes it again, byte by byte.
type Manifest struct {
	Format     int         `json:"format"` // manifestFormat
	Program    string      `json:"program"`
	Spine      SpineFile   `json:"spine"`
	Parameters Parameters  `json:"parameters"`
	Groups     []GroupInfo `json:"groups"`
	Facts      FactsInfo   `json:"facts"`
	Output     OutputFile  `json:"output"`
}

const manifestFormat = 1

// SpineFile identifies a spine.
type SpineFile struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Rows   int64  `json:"rows"`
	SQL    string `json:"sql,omitempty"` // the query whose result the file is
}

// Parameters are those of a Config that change the output.
type Parameters struct {
	Keys      map[string]string `json:"keys"` // column of each entity
	At        string            `json:"at"`
	Known     string            `json:"known"`
	Lag       string            `json:"lag,omitempty"`
	Features  []string          `json:"features,omitempty"`
	FullNames bool              `json:"full_names,omitempty"`
}

// GroupInfo identifies the definition of a group.
type GroupInfo struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
	Digest  string `json:"digest"`
}

// FactsInfo says which facts were read.
type FactsInfo struct {
	From      string    `json:"from"`
	Positions Positions `json:"positions"`
	// Used is how many versions of facts are about entities of the spine, by source. A repeated run
	// finds as many, or the store has lost some.
	Used map[string]int64 `json:"used"`
	// Consents are the positions, by partition, up to which it was known who refuses. A repeated run
	// leaves out the same entities. Null: nobody was asked.
	Consents map[int32]int64 `json:"consents"`
}

// OutputFile identifies an output.
type OutputFile struct {
	Path    string   `json:"path"`
	SHA256  string   `json:"sha256"`
	Rows    int64    `json:"rows"`
	Columns []string `json:"columns"` // those of the features
	// Informed is how many rows have facts that were known at their time, by entity.
	Informed map[string]int64 `json:"informed"`
}

// ErrManifest means that a run cannot be repeated. The text says what has changed.
var ErrManifest = errors.New("manifest")

func manifestError(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrManifest, fmt.Errorf(format, a...))
}

// Digest returns a digest of all of a group's definition but the code of its sources, which a new
// version has to mark.
func Digest(g *features.Group) (string, error) {
	type source struct {
		Name, Topic string
		Columns     []features.Column
	}
	definition := struct {
		Name, Entity string
		Identity     string `json:",omitempty"`
		Version      int
		Sources      []source
		Features     []features.Feature
	}{Name: g.Name, Entity: g.Entity, Identity: g.Identity.String(), Version: g.Version, Features: g.Features}
	for _, s := range g.Sources {
		definition.Sources = append(definition.Sources, source{s.Name, s.Topic, s.Columns})
	}
	text, err := json.Marshal(definition)
	if err != nil {
		return "", fmt.Errorf("digest of group %s: %w", g.Name, err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// ReadManifest reads a manifest.
func ReadManifest(path string) (Manifest, error) {
	f, err := os.Open(path) //nolint:gosec // the user names it
	if err != nil {
		return Manifest{}, manifestError("%w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	m, err := DecodeManifest(f)
	if err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// maxManifest bounds the size of a manifest.
const maxManifest = 16 << 20

// DecodeManifest reads a manifest.
func DecodeManifest(r io.Reader) (Manifest, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	switch {
	case err != nil:
		return Manifest{}, manifestError("%w", err)
	case len(text) > maxManifest:
		return Manifest{}, manifestError("more than %d MiB", maxManifest>>20)
	}
	var m Manifest
	if err := decode.JSON(text, &m); err != nil {
		return Manifest{}, manifestError("%w", err)
	}
	switch {
	case m.Format != manifestFormat:
		return Manifest{}, manifestError("format %d: this program reads format %d", m.Format, manifestFormat)
	case m.Facts.Positions == nil:
		return Manifest{}, manifestError("facts.positions is missing")
	case len(m.Groups) == 0:
		return Manifest{}, manifestError("groups is empty")
	}
	return m, nil
}

// Apply sets the parameters and positions of a Config from the manifest. c.Groups are all groups that
// the program has; those of the manifest remain. c.Spine, if it is not empty, is where the spine is
// now.
func (m Manifest) Apply(c *Config) error {
	available := c.Groups
	c.Groups = nil
	for _, want := range m.Groups {
		var group *features.Group
		for _, g := range available {
			if g.Name == want.Name && (group == nil || g.Version == want.Version) {
				group = g
			}
		}
		if group == nil {
			return manifestError("this program has no group %s", want.Name)
		}
		digest, err := Digest(group)
		if err != nil {
			return err
		}
		if group.Version != want.Version || digest != want.Digest {
			return manifestError("group %s is version %d with the digest %.12s now, and was version %d with %.12s",
				want.Name, group.Version, digest, want.Version, want.Digest)
		}
		c.Groups = append(c.Groups, group)
	}
	if c.Spine == "" {
		c.Spine = m.Spine.Path
	}
	p := m.Parameters
	c.Keys, c.At, c.Known, c.Features, c.FullNames = p.Keys, p.At, p.Known, p.Features, p.FullNames
	c.Lag = 0
	if p.Lag != "" {
		lag, err := duration.Parse(p.Lag)
		if err != nil {
			return manifestError("parameters.lag: %w", err)
		}
		c.Lag = lag
	}
	c.Positions, c.Consents = m.Facts.Positions, m.Facts.Consents
	return nil
}

// Repeat makes the training set of a manifest again. Apply must have set c. It writes nothing if the
// output would differ.
func Repeat(ctx context.Context, m Manifest, c Config) (Manifest, error) {
	return build(ctx, c, &m)
}

// compare returns an error that names the difference between a run and the one that it repeats.
func (m Manifest) compare(again Manifest) error {
	for source, used := range m.Facts.Used {
		if got := again.Facts.Used[source]; got != used {
			return manifestError("source %s has %d facts up to the manifest's positions, and had %d: the store has lost or "+
				"gained some", source, got, used)
		}
	}
	if m.Output.SHA256 != again.Output.SHA256 {
		return manifestError("the output differs: its SHA-256 is %s, and was %s (by %s; this program is %s)",
			again.Output.SHA256, m.Output.SHA256, m.Program, again.Program)
	}
	return nil
}
