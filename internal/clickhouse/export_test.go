package clickhouse

import (
	"bufio"
	"io"
	"time"
)

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

// Blocks returns a function that decodes the next block of an answer.
func Blocks(r io.Reader) func(columns []any) (rows int, err error) {
	b := blockReader{r: bufio.NewReaderSize(r, blockBuffer)}
	return b.next
}
