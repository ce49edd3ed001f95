// Package verify compares the sides of the system by content: store, topic, tables and views.
//
// Each Side returns a digest of its content: a count and a hash that does not depend on order. A
// Comparison is a set of sides that must be equal, and a Subject is all comparisons of one
// aggregate. Run reads every side once and reports the first difference, by its stream.
//
// The package does not know stores, topics or tables. internal/app creates the subjects.
package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/digest"
)

// Side is something with content to compare.
type Side struct {
	Name   string // "store", "topic millrace.orders", "view orderstatus/v1"
	Digest func(ctx context.Context) (*digest.Digest, error)
}

// Comparison is a set of sides that must have equal content. The first side is the source of truth,
// and the others are compared with it.
type Comparison struct {
	Unit  string // what is counted: "events", "documents", "rows"
	Sides []Side
}

// Subject is all comparisons of one aggregate type.
type Subject struct {
	Aggregate   string
	Comparisons []Comparison
}

// Result is the outcome of a verification.
type Result struct {
	Equal      bool
	Aggregates []AggregateResult
}

// AggregateResult is the outcome for one aggregate type.
type AggregateResult struct {
	Aggregate  string
	Equal      bool
	Sides      []SideResult
	Difference string // the first difference, for people; empty if equal
}

// SideResult is the digest of one side.
type SideResult struct {
	Side, Unit string
	Sum        digest.Sum
	// Invalid counts records that are not events, and FirstInvalid describes the first one. No sum
	// includes them.
	Invalid      uint64
	FirstInvalid string
}

// Progress is called before each comparison, and at the end, with the number of sides that are done
// and the number of all sides.
type Progress func(doing string, done, total int)

// UnreadableError reports that the content of a side is lost or damaged. It counts as a difference,
// and the comparison continues.
type UnreadableError struct{ Err error }

func (e *UnreadableError) Error() string { return e.Err.Error() }

func (e *UnreadableError) Unwrap() error { return e.Err }

// parallel bounds how many sides are read at the same time. Each needs a core, and memory for each
// stream.
const parallel = 2

// Run reads every side once and compares them.
func Run(ctx context.Context, subjects []Subject, progress Progress) (Result, error) {
	total := 0
	for _, s := range subjects {
		for _, c := range s.Comparisons {
			total += len(c.Sides)
		}
	}
	result, done := Result{Equal: true}, 0
	for _, s := range subjects {
		r := AggregateResult{Aggregate: s.Aggregate, Equal: true}
		for _, c := range s.Comparisons {
			progress(s.Aggregate+" "+c.Unit, done, total)
			digests, broken, err := read(ctx, s.Aggregate, c)
			if err != nil {
				return Result{}, err
			}
			for i, d := range digests {
				if broken[i] != nil {
					r.Sides = append(r.Sides, SideResult{Side: c.Sides[i].Name, Unit: c.Unit, Sum: digest.New().Total()})
					if r.Equal {
						r.Equal = false
						r.Difference = fmt.Sprintf("%s %s cannot be read: %v", s.Aggregate, c.Sides[i].Name, broken[i])
					}
					continue
				}
				if digests[0] == nil { // the first side is unreadable, so there is nothing to compare with
					continue
				}
				r.Sides = append(r.Sides, SideResult{
					Side: c.Sides[i].Name, Unit: c.Unit, Sum: d.Total(), Invalid: d.Invalid, FirstInvalid: d.FirstInvalid,
				})
				// Report the first difference only. The digests of the other sides are listed anyway.
				if diff := difference(c.Unit, c.Sides[0].Name, digests[0], c.Sides[i].Name, d); diff != "" && r.Equal {
					r.Equal, r.Difference = false, s.Aggregate+" "+diff
				}
			}
			done += len(c.Sides)
		}
		result.Aggregates = append(result.Aggregates, r)
		result.Equal = result.Equal && r.Equal
	}
	progress("compared", done, total)
	return result, nil
}

// read returns the digest of each side, or the error that makes the side unreadable.
func read(ctx context.Context, aggregate string, c Comparison) (digests []*digest.Digest, broken []error, err error) {
	digests, broken = make([]*digest.Digest, len(c.Sides)), make([]error, len(c.Sides))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, side := range c.Sides {
		g.Go(func() error {
			d, err := side.Digest(ctx)
			if unreadable := (*UnreadableError)(nil); errors.As(err, &unreadable) {
				broken[i] = err
				return nil
			}
			if err != nil {
				return fmt.Errorf("verify %s: read %s: %w", aggregate, side.Name, err)
			}
			digests[i] = d
			return nil
		})
	}
	return digests, broken, g.Wait()
}

// difference describes the first stream, by id, in which two sides differ. It is empty if they are
// equal.
func difference(unit, aName string, a *digest.Digest, bName string, b *digest.Digest) string {
	if maps.Equal(a.Streams, b.Streams) {
		return ""
	}
	// A stream may be on one side only, so look at the streams of both.
	var first string
	found := false
	for _, side := range []*digest.Digest{a, b} {
		for stream := range side.Streams {
			if a.Streams[stream] != b.Streams[stream] && (!found || strings.Compare(stream, first) < 0) {
				first, found = stream, true
			}
		}
	}
	x, y := a.Streams[first], b.Streams[first]
	if x.Count != y.Count {
		return fmt.Sprintf("%q: %s has %d %s, %s has %d", first, aName, x.Count, unit, bName, y.Count)
	}
	return fmt.Sprintf("%q: %s and %s have %d %s each, but with different content", first, aName, bName, x.Count, unit)
}
