package versions

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
)

// Kind is how a document differs.
type Kind int

// The kinds of differences.
const (
	Missing    Kind = iota + 1 // only the serving version has the document
	Additional                 // only the compared version has it
	Content                    // the content differs, at the same version of the document
	Behind                     // the versions of the document differed until the end of the wait
)

// Difference is a document that differs.
type Difference struct {
	Key              string
	Kind             Kind
	Serving, Version uint64 // versions of the document on each side
	Fields           []Field
}

// Field is a field that differs, with its values as JSON.
type Field struct{ Name, Serving, Version string }

// Comparison is the result of Compare.
type Comparison struct {
	Equal, Different uint64 // documents
	Differences      []Difference
	// Digests of the documents that both sides have at the same version.
	Serving, Version digest.Sum
}

// CompareConfig configures Compare.
type CompareConfig struct {
	Samples int           // maximum number of differences that are returned
	Wait    time.Duration // how long documents may have different versions
	// Progress is called with the number of documents that were read. It may be nil.
	Progress func(done uint64)
}

const (
	compareBatch = 500                    // documents per request
	maxPending   = 10_000                 // documents whose versions differ
	maxSeen      = 8                      // states of such a document that are kept per side
	settleEvery  = 100 * time.Millisecond // how often these are read again
	maxValue     = 200                    // characters of a value
	maxFields    = 20
)

// pending is a document whose versions differed when it was read. Both sides follow the log, so each
// will have the version that the other one had. The states are kept, because they may never have the
// same version at the same moment.
type pending struct{ serving, version []readmodels.Item }

// errFarBehind is the error of too many documents with different versions.
var errFarBehind = errors.New("more than 10,000 documents have different versions on the two sides: " +
	"wait until the version has caught up, and compare again")

// comparing is a comparison in progress.
type comparing struct {
	cfg              CompareConfig
	serving, version readmodels.Contents
	result           Comparison
	pending          map[string]*pending
	done             uint64
}

// Compare compares the documents of a version with those of the serving one. Events may arrive
// meanwhile: a document is compared at a version that both sides have had.
func Compare(ctx context.Context, serving, version readmodels.Contents, cfg CompareConfig) (Comparison, error) {
	c := comparing{cfg: cfg, serving: serving, version: version, pending: map[string]*pending{}}
	err := c.pass(ctx, serving, func(batch map[string]readmodels.Item) error {
		others, err := version.Item(ctx, slices.Collect(maps.Keys(batch)))
		if err != nil {
			return err
		}
		for key, item := range batch {
			other, both := others[key]
			if both && other.Version == item.Version {
				c.compare(key, item, other)
			} else if err := c.wait(key, item, true, other, both); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		// Documents that both sides have were compared in the first pass.
		err = c.pass(ctx, version, func(batch map[string]readmodels.Item) error {
			others, err := serving.Item(ctx, slices.Collect(maps.Keys(batch)))
			if err != nil {
				return err
			}
			for key, item := range batch {
				if other, both := others[key]; !both {
					if err := c.wait(key, other, false, item, true); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err == nil {
		err = c.settle(ctx)
	}
	if err != nil {
		return Comparison{}, fmt.Errorf("compare versions: %w", err)
	}
	return c.result, nil
}

// pass reads all documents of a side in batches.
func (c *comparing) pass(
	ctx context.Context, side readmodels.Contents, compare func(map[string]readmodels.Item) error,
) error {
	batch := make(map[string]readmodels.Item, compareBatch)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := compare(batch)
		if c.done += uint64(len(batch)); c.cfg.Progress != nil {
			c.cfg.Progress(c.done)
		}
		clear(batch)
		return err
	}
	err := side.Items(ctx, func(key string, item readmodels.Item) error {
		batch[key] = item
		if len(batch) < compareBatch {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// wait keeps a document for settle.
func (c *comparing) wait(key string, serving readmodels.Item, is bool, version readmodels.Item, has bool) error {
	p := c.pending[key]
	if p == nil {
		if len(c.pending) >= maxPending {
			return errFarBehind
		}
		p = &pending{}
		c.pending[key] = p
	}
	if is {
		p.serving = keep(p.serving, serving)
	}
	if has {
		p.version = keep(p.version, version)
	}
	return nil
}

// keep adds a state to the last ones, unless it is there.
func keep(seen []readmodels.Item, item readmodels.Item) []readmodels.Item {
	if n := len(seen); n > 0 && seen[n-1].Version == item.Version {
		seen[n-1] = item
		return seen
	}
	if seen = append(seen, item); len(seen) > maxSeen {
		seen = seen[1:]
	}
	return seen
}

// settle reads the pending documents until each was compared, or the wait is over.
func (c *comparing) settle(ctx context.Context) error {
	end := time.NewTimer(c.cfg.Wait)
	defer end.Stop()
	poll := time.NewTicker(settleEvery)
	defer poll.Stop()
	for over := false; ; {
		for key, p := range c.pending {
			if serving, version, ok := p.common(); ok {
				c.compare(key, serving, version)
				delete(c.pending, key)
			}
		}
		if len(c.pending) == 0 {
			return nil
		}
		if over {
			c.giveUp()
			return nil
		}
		select {
		case <-poll.C:
		case <-end.C:
			over = true // they are read once more
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := c.reread(ctx); err != nil {
			return err
		}
	}
}

// reread reads the pending documents again. One that neither side has any more is equal.
func (c *comparing) reread(ctx context.Context) error {
	for keys := range slices.Chunk(slices.Collect(maps.Keys(c.pending)), compareBatch) {
		serving, err := c.serving.Item(ctx, keys)
		if err != nil {
			return err
		}
		version, err := c.version.Item(ctx, keys)
		if err != nil {
			return err
		}
		for _, key := range keys {
			s, is := serving[key]
			v, has := version[key]
			if !is && !has {
				delete(c.pending, key)
				continue
			}
			if err := c.wait(key, s, is, v, has); err != nil {
				return err
			}
		}
	}
	return nil
}

// common returns the states of a document at a version that both sides have had, the newest one.
func (p *pending) common() (serving, version readmodels.Item, ok bool) {
	for _, s := range slices.Backward(p.serving) {
		for _, v := range slices.Backward(p.version) {
			if s.Version == v.Version {
				return s, v, true
			}
		}
	}
	return readmodels.Item{}, readmodels.Item{}, false
}

// giveUp reports the documents that never had the same version.
func (c *comparing) giveUp() {
	for key, p := range c.pending {
		private := slices.ContainsFunc(slices.Concat(p.serving, p.version),
			func(item readmodels.Item) bool { return item.Private })
		d := Difference{Key: shown(key, private), Kind: Behind}
		if n := len(p.serving); n > 0 {
			d.Serving = p.serving[n-1].Version
		} else {
			d.Kind = Additional
		}
		if n := len(p.version); n > 0 {
			d.Version = p.version[n-1].Version
		} else {
			d.Kind = Missing
		}
		c.differ(d)
	}
}

// compare compares the two sides of a document.
func (c *comparing) compare(key string, serving, version readmodels.Item) {
	encode := proto.MarshalOptions{Deterministic: true}
	add := func(sum *digest.Sum, item readmodels.Item) string {
		content, err := encode.Marshal(item.Content)
		if err != nil { // a document that was read can be written
			content = []byte(err.Error())
		}
		sum.Add(append(digest.AppendString(nil, key), content...))
		return string(content)
	}
	if add(&c.result.Serving, serving) == add(&c.result.Version, version) {
		c.result.Equal++
		return
	}
	c.differ(Difference{Key: shown(key, serving.Private), Kind: Content, Serving: serving.Version, Version: version.Version,
		Fields: fields(serving, version)})
}

// shown returns a key as it may be shown. That of a private document is KIND/ID, or ID alone. The id may
// be personal unless it is a UUID. Then its hash is shown.
func shown(key string, private bool) string {
	at := strings.Index(key, "/") + 1
	if _, err := uuid.Parse(key[at:]); !private || err == nil {
		return key
	}
	return fmt.Sprintf("%ssha256:%x", key[:at], sha256.Sum256([]byte(key[at:])))
}

// differ counts a difference, and keeps it if there is room.
func (c *comparing) differ(d Difference) {
	c.result.Different++
	if len(c.result.Differences) < c.cfg.Samples {
		c.result.Differences = append(c.result.Differences, d)
	}
}

// fields returns the fields that differ between two documents of one type.
func fields(serving, version readmodels.Item) (all []Field) {
	a, b := serving.Content.ProtoReflect(), version.Content.ProtoReflect()
	list := a.Descriptor().Fields()
	for i := range list.Len() {
		f := list.Get(i)
		if a.Has(f) == b.Has(f) && a.Get(f).Equal(b.Get(f)) || len(all) == maxFields {
			continue
		}
		d := Field{Name: string(f.Name())}
		if !serving.Private && !version.Private {
			d.Serving, d.Version = value(a, f), value(b, f)
		}
		all = append(all, d)
	}
	return all
}

// value returns a field of a message as JSON, shortened. It is empty if the field is not set.
func value(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if !m.Has(f) {
		return ""
	}
	only := m.New()
	only.Set(f, m.Get(f))
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(only.Interface())
	if err != nil {
		return err.Error()
	}
	if r := []rune(string(text)); len(r) > maxValue {
		return string(r[:maxValue-1]) + "…"
	}
	return string(text)
}
