package redis

import "context"

// Forget deletes the positions of a view.
func (c *Client) Forget(ctx context.Context, view string) error {
	return c.rdb.Del(ctx, c.Documents(view).positionsKey()).Err()
}
