package clickhouse

import "time"

// WithSilence returns a client with another limit for silence.
func (c *Client) WithSilence(d time.Duration) *Client {
	other := *c
	other.silence = d
	return &other
}

// SetSilence sets the limit for silence of a Store.
func (s *Store) SetSilence(d time.Duration) { s.client.silence = d }

// SetRemote makes a Store treat its server as one elsewhere.
func (s *Store) SetRemote() { s.local = false }
