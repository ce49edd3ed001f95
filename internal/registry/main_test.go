package registry_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/event"
	_ "github.com/millrace/millrace/gen/millrace/catalog/v1"   // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/customer/v1"  // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/identity/v1"  // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/inventory/v1" // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/order/v1"     // linked in for Message
	"github.com/millrace/millrace/internal/registry"
	server "github.com/millrace/millrace/test/servers/registry"
)

// shared is used by all tests that do not break it. Each uses its own subjects.
var shared server.Server

func TestMain(m *testing.M) {
	code := m.Run()
	if err := errors.Join(shared.Stop(), goleak.Find()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newClient(tb testing.TB, s *server.Server) *registry.Client {
	tb.Helper()
	c, err := registry.NewClient(registry.Config{URL: s.URL(tb), Timeout: time.Minute, Logger: quiet})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func message(tb testing.TB, of event.Aggregate) protoreflect.MessageDescriptor {
	tb.Helper()
	m, err := registry.Message(of)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// topicOf returns a topic that no other test uses.
func topicOf(t testing.TB) string { return strings.NewReplacer("/", ".", " ", "-").Replace(t.Name()) }

func newEncoder(tb testing.TB, cfg registry.EncoderConfig) *registry.Encoder {
	tb.Helper()
	e, err := registry.NewEncoder(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}
