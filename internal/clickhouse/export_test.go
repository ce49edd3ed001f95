package clickhouse

import "time"

// WithSilence returns a client that waits so long for a sign of life.
func (c *Client) WithSilence(d time.Duration) *Client {
	other := *c
	other.silence = d
	return &other
}
