package orderstatus

import "context"

// Version exports version for tests.
func (v *View) Version(ctx context.Context, order string) (uint64, error) {
	return v.version(ctx, order)
}
