package customer360

import (
	"context"

	"github.com/millrace/millrace/event/identity"
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
