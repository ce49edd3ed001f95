package kafka

import (
	"log/slog"
	"testing"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
)

// Each runs a test twice, in parallel: on an embedded broker of its own, and on the cluster, which
// the binary's other tests share. So topics, groups and transactional ids need unique names. It
// shows that the embedded broker behaves like Apache Kafka in what the test covers.
func (c *Cluster) Each(t *testing.T, test func(t *testing.T, brokers string)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, Embedded(t))
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		test(t, c.Brokers(t))
	})
}

// Embedded starts an embedded broker that stops when the test ends, and returns its address.
func Embedded(tb testing.TB) (brokers string) {
	tb.Helper()
	b, err := embedded.Start(tb.Context(),
		embedded.Config{DataDir: tb.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
	})
	return b.Addr()
}
