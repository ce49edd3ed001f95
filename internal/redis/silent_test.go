package redis_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/millrace/millrace/internal/redis"
)

// A server that accepts connections and does not answer does not block callers, with or without a
// limit of their own.
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
