package redis_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/embedded/redis"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	// LevelDB's goroutine that releases buffers ends one second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

// The server answers until Close, which frees its address.
func TestServesUntilClosed(t *testing.T) {
	t.Parallel()
	s, err := redis.Start(t.Context(), redis.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // Close of the server ends it
	if _, err := fmt.Fprint(conn, "*1\r\n$4\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || answer != "+PONG\r\n" {
		t.Fatalf("PING: %q, %v", answer, err)
	}
	addr := s.Addr()
	s.Close()
	again, err := redis.Start(t.Context(), redis.Config{Addr: addr})
	if err != nil {
		t.Fatalf("the address is not free after Close: %v", err)
	}
	again.Close()
}

// The server has no access control, so it must not be reachable from other machines.
func TestRejectsNonLoopbackAddresses(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", "nonsense", ":0"} {
		if s, err := redis.Start(t.Context(), redis.Config{Addr: addr}); err == nil {
			s.Close()
			t.Errorf("started on %q", addr)
		}
	}
}
