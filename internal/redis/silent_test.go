package redis_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/millrace/millrace/internal/redis"
)

// What takes connections and answers nothing is not waited for, whether the caller sets a limit or
// not.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	_, err = redis.Open(context.Background(), redis.Config{Addr: listener.Addr().String()})
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}
