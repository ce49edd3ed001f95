// Package training builds point-in-time training sets: for each row of a spine (an entity, a time,
// and anything else, such as a label), the vector that a model in production would have been given.
//
// Build reads a spine from a Parquet file and facts from a Facts, and writes the spine's columns and
// the vectors to another Parquet file, in the order of the spine. The Manifest that it returns
// repeats the run: the same manifest gives the same bytes, also after more facts were recorded.
//
// Invariants:
//
//   - Each vector equals features.EvaluatePerson at the row's time and known time, to the last bit. The
//     default known time is the row's time, so that nothing which became known later gets in: late
//     events, corrections, retractions, merges, the label's own event.
//   - No fact of an entity that refuses is used.
//   - Memory is bounded by Config.Memory. Entities are split into ranges, and what does not fit is in
//     temporary files. One entity is never split.
//
// Rows of entities that are one person with others are in persons.go. The join of one range is in sweep.go
// and aggregate.go: each version of a fact contributes to an
// interval of the entity's rows in the order of time. Sums over rows come from differences at the
// ends of the intervals, minima, maxima and picks from a sparse table over them. So the cost is
// proportional to facts plus rows, whatever the windows overlap.
package training

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
)

// Config describes a training set.
type Config struct {
	Spine string // path of a Parquet file
	// KeepSpine is the path that Spine is renamed to when the set is complete. Empty means that it is not.
	KeepSpine string
	// Keys has the column of each entity: texts, signed integers or UUIDs. An entity that it lacks is in
	// the column of the entity's name.
	Keys map[string]string
	At   string // column of the time: timestamps
	// Known is KnownAt, KnownLatest, or a column of timestamps. A null there means the row's time.
	Known string
	// Lag is subtracted from the times of all rows. A microsecond excludes facts of the row's own
	// time.
	Lag       time.Duration
	Groups    []*features.Group // of one or more entities
	Features  []string          // names of outputs or features; empty means all of the groups
	FullNames bool              // name the columns group__output
	Out       string            // path of the Parquet file to write

	Facts Facts
	From  string // where Facts are, and the query that made the spine, if one did: for the manifest
	SQL   string
	// Positions bound the facts of each source. Nil means those that Facts has now.
	Positions Positions
	// Refuses reports whether entities that are one person, such as a customer, refuse that their facts
	// are used. Their rows are those of an entity without facts. nil: none does.
	Refuses func(entity string, ids ...string) bool
	// Consents are the positions, by partition, up to which Refuses knows the log: for the manifest.
	Consents map[int32]int64

	Memory   int64                           // bytes; 0 means DefaultMemory
	Workers  int                             // 0 means one per CPU
	TempDir  string                          // for temporary files; empty means the system's
	Program  string                          // version of the program, for the manifest
	Progress func(stage string, n, of int64) // may be nil; called by one goroutine at a time
}

// Values of Config.Known that are not columns.
const (
	KnownAt     = "at"     // what was known at the row's time
	KnownLatest = "latest" // everything that is known now
)

// DefaultMemory is the default of Config.Memory.
const DefaultMemory = 512 << 20

// minMemory is the smallest budget: below it, buffers alone take more.
const minMemory = 16 << 20

// ErrConfig means that a parameter is wrong. The text names it.
var ErrConfig = errors.New("training set")

// fail returns an ErrConfig.
func fail(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrConfig, fmt.Errorf(format, a...))
}

// check checks the parameters and sets defaults.
func (c *Config) check() error {
	switch {
	case c.Spine == "":
		return fail("spine: name a Parquet file")
	case c.At == "":
		return fail("at: name the spine's column of the time")
	case c.Out == "":
		return fail("out: name the file to write")
	case c.Lag < 0 || c.Lag%time.Microsecond != 0:
		return fail("lag %s: want whole microseconds, not negative", c.Lag)
	case c.Memory != 0 && c.Memory < minMemory:
		return fail("memory %d: want at least %d bytes", c.Memory, minMemory)
	case len(c.Groups) == 0:
		return fail("group: name at least one")
	case c.Facts == nil:
		return fail("no facts")
	}
	for i, g := range c.Groups {
		if err := g.Check(); err != nil {
			return fail("%w", err)
		}
		if slices.ContainsFunc(c.Groups[:i], func(o *features.Group) bool { return o.Name == g.Name }) {
			return fail("group %s is named twice", g.Name)
		}
		for _, o := range c.Groups[:i] {
			if o.Entity == g.Entity && o.Identity != g.Identity {
				return fail("groups %s and %s describe %s with different identities: build a set for each", o.Name, g.Name,
					g.Entity)
			}
			for _, s := range g.Sources {
				if o.Entity != g.Entity && o.Source(s.Name) != nil {
					return fail("groups %s and %s have the source %s, but describe different entities, %s and %s: "+
						"build a set for each", o.Name, g.Name, s.Name, o.Entity, g.Entity)
				}
			}
		}
	}
	if err := c.checkKeys(); err != nil {
		return err
	}
	if c.Known == "" {
		c.Known = KnownAt
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.TempDir == "" {
		c.TempDir = os.TempDir()
	}
	if c.Progress == nil {
		c.Progress = func(string, int64, int64) {}
	}
	return nil
}

// checkKeys completes Keys.
func (c *Config) checkKeys() error {
	entities := entitiesOf(c.Groups)
	keys := map[string]string{}
	for _, entity := range entities {
		keys[entity] = cmp.Or(c.Keys[entity], entity)
	}
	for entity, column := range c.Keys {
		if keys[entity] == "" {
			return fail("key %s=%s: the groups describe %s, not %s", entity, column, strings.Join(entities, ", "), entity)
		}
	}
	c.Keys = keys
	return nil
}

// selected returns the outputs that Features names, by group.
func (c *Config) selected() ([]groupOutput, error) {
	wanted := map[string]bool{}
	for _, name := range c.Features {
		wanted[strings.TrimSpace(name)] = false
	}
	var all []groupOutput
	var names []string
	for _, g := range c.Groups {
		for _, o := range g.Outputs() {
			names = append(names, o.Name)
			keep := len(wanted) == 0
			for _, name := range []string{o.Name, o.Feature.Name, g.Name + "__" + o.Name} {
				if _, ok := wanted[name]; ok {
					wanted[name], keep = true, true
				}
			}
			if keep {
				column := o.Name
				if c.FullNames {
					column = g.Name + "__" + o.Name
				}
				all = append(all, groupOutput{group: g, output: o, column: column})
			}
		}
	}
	for _, name := range c.Features {
		if !wanted[strings.TrimSpace(name)] {
			return nil, fail("feature %q is not one of the groups; they have %s", name, strings.Join(names, ", "))
		}
	}
	for i, o := range all {
		for _, p := range all[:i] {
			if p.column == o.column {
				return nil, fail("groups %s and %s both have %s: use full names (group__output)",
					p.group.Name, o.group.Name, o.column)
			}
		}
	}
	return all, nil
}

// groupOutput is an output of one of the groups, and the name of its column.
type groupOutput struct {
	group  *features.Group
	output features.Output
	column string
}
