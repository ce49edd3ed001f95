package customer360

import (
	"context"
	"time"

	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
)

// ProfilesDigest returns the digest of the profiles of all persons, one item per person: what
// queries can read, without what led to it.
func (v *View) ProfilesDigest(ctx context.Context) (*digest.Digest, error) {
	d := digest.New()
	err := v.everyCustomer(ctx, func(id string) error {
		parts, err := v.parts(ctx, identity.Customer(id))
		if err != nil || parts.Person.Canonical() != id || parts.Empty() {
			return err
		}
		profile, err := Compose(parts)
		if err != nil {
			return err
		}
		return readmodels.AddDocument(d, id, profile)
	})
	return d, err
}

// EvaluateOne evaluates one segment.
func EvaluateOne(s Segment, p Parts, now time.Time) (member bool, due time.Time, err error) {
	return EvaluateWith(noFeatures{}, s, p, now)
}

// EvaluateWith evaluates one segment that may use features.
func EvaluateWith(f Features, s Segment, p Parts, now time.Time) (member bool, due time.Time, err error) {
	limits := Limits{}.withDefaults()
	compiled, err := compile([]Segment{s}, f.List(), limits)
	if err != nil {
		return false, time.Time{}, err
	}
	o := evaluate(compiled, f, limits.Recheck, p, now)
	return o.members[s.Name], o.due, nil
}

// PartsOf returns the fragments of a person.
func (v *View) PartsOf(ctx context.Context, customer string) (Parts, error) {
	return v.parts(ctx, identity.Customer(customer))
}

// AddMember makes a customer a member whom nobody has evaluated.
func (v *View) AddMember(segment, customer string) {
	v.members.add(&customer360v1.SegmentChange{Segment: segment, CustomerId: customer, Member: true, Version: 1 << 40})
}

// MembersOf returns the number of members of a segment.
func (v *View) MembersOf(segment string) uint64 { return v.members.count(segment) }
