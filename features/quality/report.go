package quality

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
)

// Source computes vectors.
type Source interface {
	// Sample returns at most n entities of the kind that a group describes, and how many there are.
	// The same entities make the same sample.
	Sample(ctx context.Context, g *features.Group, n int) (entities []string, total int64, err error)
	// Vectors computes the named outputs of entities at a time. A *MissingError says why that time
	// has no vectors.
	Vectors(ctx context.Context, g *features.Group, outputs []features.Output, entities []string, at time.Time) (
		[]features.Vector, error)
}

// MissingError is why there are no vectors of a time, although those of other times can be computed.
type MissingError struct{ Reason string }

func (e *MissingError) Error() string { return "no vectors of this time: " + e.Reason }

// Request says what to measure.
type Request struct {
	Group   *features.Group
	Outputs []features.Output
	At      time.Time // of the vectors that are compared with the reference
	// The reference is the vectors of Days days at the time of day of ReferenceEnd, which is the
	// latest one. The time of day matters: in the morning, less has happened than in the evening.
	ReferenceEnd time.Time
	Days         int
	Entities     int // of the sample
}

// DefaultRequest returns a request for all outputs at a time, beside the four weeks before it.
func DefaultRequest(g *features.Group, at time.Time) Request {
	return Request{Group: g, Outputs: g.Outputs(), At: at, ReferenceEnd: at.AddDate(0, 0, -1), Days: 28, Entities: 1000}
}

// Report is the quality of a group at one time.
type Report struct {
	Group   string // features.Group.ID
	At      time.Time
	Sources []Freshness // empty if At is not the present
	// Entities is how many the system knows, and Sampled how many were measured.
	Entities int64
	Sampled  int
	Days     []Day // that of At, then those of the reference, the latest first
	Features []Measured
}

// Freshness is how far one of a group's sources is reflected.
type Freshness struct {
	Source, Topic string
	Newest        time.Time // when the newest event was recorded that the vectors reflect; zero if there is none
	Lag           uint64    // events that they do not reflect
}

// Day is the vectors of the sample at one time.
type Day struct {
	At      time.Time
	Found   int64  // entities that had facts
	Missing string // why there are no vectors; empty if there are
}

// Measured is how the values of an output are distributed.
type Measured struct {
	Current   Distribution
	Reference Distribution // the sum of the reference's days
	Daily     []Distribution
	PSI       float64
}

// Measure computes a report without Sources.
func Measure(ctx context.Context, from Source, r Request) (*Report, error) {
	sample, total, err := from.Sample(ctx, r.Group, r.Entities)
	if err != nil {
		return nil, fmt.Errorf("sample of %s: %w", r.Group.ID(), err)
	}
	report := &Report{Group: r.Group.ID(), At: r.At, Entities: total, Sampled: len(sample)}
	reference := NewProfile(r.Group, r.Outputs)
	profiles := make([]*Profile, 0, r.Days+1)
	for i := range r.Days + 1 {
		at := r.At
		if i > 0 {
			at = r.ReferenceEnd.AddDate(0, 0, 1-i)
		}
		p, err := profile(ctx, from, r, sample, at)
		day := Day{At: at, Found: p.Found}
		if missing := (*MissingError)(nil); errors.As(err, &missing) {
			day.Missing = missing.Reason
		} else if err != nil {
			return nil, fmt.Errorf("profile of %s at %s: %w", r.Group.ID(), at.Format(time.RFC3339), err)
		}
		report.Days, profiles = append(report.Days, day), append(profiles, p)
		if i > 0 {
			if err := reference.Merge(p); err != nil {
				return nil, err
			}
		}
	}
	for i := range r.Outputs {
		m := Measured{Current: profiles[0].Outputs[i], Reference: reference.Outputs[i]}
		for _, p := range profiles[1:] {
			m.Daily = append(m.Daily, p.Outputs[i])
		}
		m.PSI = PSI(&m.Reference, &m.Current)
		report.Features = append(report.Features, m)
	}
	return report, nil
}

// chunk is the number of entities whose vectors are computed at once: a caller that goes away waits
// for no more than these.
const chunk = 200

// profile profiles the vectors of one time.
func profile(ctx context.Context, from Source, r Request, sample []string, at time.Time) (*Profile, error) {
	p := NewProfile(r.Group, r.Outputs)
	for part := range slices.Chunk(sample, chunk) {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		vectors, err := from.Vectors(ctx, r.Group, r.Outputs, part, at)
		if err != nil {
			// What was counted is not the whole sample.
			return NewProfile(r.Group, r.Outputs), err
		}
		for _, v := range vectors {
			if err := p.Add(v); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}
