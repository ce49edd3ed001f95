package redis

import (
	"errors"
	"net"
	"testing"

	"github.com/redis/go-redis/v9"
)

// reply is an error that a server answers with.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

// TestMarkUnavailable: a server or a pool that is busy is like a connection that fails, and other
// errors are not.
func TestMarkUnavailable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{redis.ErrPoolTimeout, true},
		{reply("LOADING Redis is loading the dataset in memory"), true},
		{reply("CLUSTERDOWN The cluster is down"), true},
		{reply("WRONGTYPE Operation against a key holding the wrong kind of value"), false},
		{reply("READONLY You can't write against a read only replica."), false}, // the user may not write
		{redis.Nil, false},
	} {
		err := markUnavailable(c.err)
		var network net.Error
		if errors.As(err, &network) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%v is marked as %v, want unavailable: %v", c.err, err, c.want)
		}
	}
	if err := markUnavailable(nil); err != nil {
		t.Errorf("no error is marked as %v", err)
	}
}
