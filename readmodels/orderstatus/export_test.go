package orderstatus

import "context"

// Version is what the view shows of an order.
func (v *View) Version(ctx context.Context, order string) (uint64, error) {
	return v.version(ctx, order)
}
