package customer360

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// ExpectedBehavior returns the digest of the fragments of visitors, of a view that has applied these
// records of the topic of behaviour, which come in order per partition.
func ExpectedBehavior(records iter.Seq2[streams.Record, error]) (*digest.Digest, error) {
	fragments := map[string]*Fragment{}
	for r, err := range records {
		if err != nil {
			return nil, fmt.Errorf("read behaviour: %w", err)
		}
		// A record that cannot be read is a dead letter of the view.
		if next, err := projectBehavior(fragments[r.Event.Stream], r); err == nil {
			fragments[r.Event.Stream] = next
		}
	}
	d := digest.New()
	for key, f := range fragments {
		if err := readmodels.AddDocument(d, key, f); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// HasSegments reports whether the view keeps members of segments.
func (v *View) HasSegments() bool { return len(v.segments) > 0 }

// Membership returns two digests of who is in which segment: by evaluating everybody at a time, and by
// what was published. Both are without those whose membership depends on a value that changes all
// the time, because they are evaluated again only now and then.
func (v *View) Membership(ctx context.Context, now time.Time) (evaluated, published *digest.Digest, err error) {
	evaluated, published = digest.New(), digest.New()
	seen := map[string]bool{}
	err = v.everyCustomer(ctx, func(id string) error {
		seen[id] = true
		parts, err := v.parts(ctx, identity.Customer(id))
		if err != nil && !errors.Is(err, identity.ErrTooLarge) { // such a person is in no segment
			return err
		}
		o := outcome{}
		if err == nil && parts.Person.Canonical() == id {
			o = evaluate(v.segments, v.features, v.limits.Recheck, parts, now)
		}
		for _, s := range v.segments {
			if o.unsettled[s.Name] {
				continue
			}
			item := s.Name + "|" + id
			if o.members[s.Name] {
				evaluated.Add(item, nil)
			}
			if v.members.get(s.Name, id).member {
				published.Add(item, nil)
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("evaluate segments: %w", err)
	}
	// Members whom no fragment names were published without a reason.
	for _, s := range v.segments {
		for _, id := range v.members.all(s.Name) {
			if !seen[id] {
				published.Add(s.Name+"|"+id, nil)
			}
		}
	}
	return evaluated, published, nil
}
