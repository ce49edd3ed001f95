package orderstatus_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

// TestLossIsRepaired deletes data from Redis while the view runs, both while events arrive and
// while none do. It deletes all data, and in a cluster that of one node after the other. So in some
// rounds the positions are lost, and in others they remain and refer to missing data. In the end,
// the view's documents, references and positions must be those of the events.
func TestLossIsRepaired(t *testing.T) {
	t.Parallel()
	embedded := start(t, nil)
	flushEmbedded := func() error {
		conn, err := net.Dial("tcp", embedded.Addr)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(conn, "*1\r\n$8\r\nFLUSHALL\r\n")
		_, err2 := conn.Read(make([]byte, 10))
		return errors.Join(err, err2, conn.Close())
	}
	one, secure, cluster, all := &server.Servers{}, &server.Servers{Secure: true}, &server.Servers{Nodes: 3},
		&server.Servers{Nodes: 3}
	flush := func(s *server.Servers, nodes ...int) func() error {
		return func() (err error) {
			for _, node := range nodes {
				err = errors.Join(err, s.FlushAll(node))
			}
			return err
		}
	}
	restart := func(s *server.Servers, node int, withData bool) func() error {
		return func() error { return errors.Join(s.Kill(node), s.Restart(node, withData)) }
	}
	copied := &server.Servers{Nodes: 3}
	for name, c := range map[string]struct {
		cfg    func(t *testing.T) redis.Config
		losses []func() error
	}{
		"embedded, flushed": {func(*testing.T) redis.Config { return embedded }, []func() error{flushEmbedded}},
		"redis, flushed and restarted empty": {func(t *testing.T) redis.Config { return start(t, one) },
			[]func() error{flush(one, 0), restart(one, 0, false)}},
		"redis with TLS and a password, flushed": {func(t *testing.T) redis.Config { return start(t, secure) },
			[]func() error{flush(secure, 0)}},
		"redis cluster, one node flushed": {func(t *testing.T) redis.Config { return start(t, cluster) },
			[]func() error{flush(cluster, 0), flush(cluster, 1), flush(cluster, 2)}},
		"redis cluster, all flushed": {func(t *testing.T) redis.Config { return start(t, all) },
			[]func() error{flush(all, 0, 1, 2)}},
		"redis cluster, one node back at an old copy": {func(t *testing.T) redis.Config { return start(t, copied) },
			[]func() error{
				func() error { return errors.Join(copied.Save(0), copied.Save(1), copied.Save(2)) }, // nothing is lost yet
				restart(copied, 0, true), restart(copied, 1, true), restart(copied, 2, true),
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := c.cfg(t)
			client := openRedis(t, cfg)
			broker := streamstest.NewBroker(t)
			l := streamstest.NewLog(t, broker, event.Order.Topic)
			l.Write(t, randomEvents(t, l, 1000, 2000)...)
			v := orderstatus.New(client, streamstest.Quiet)
			r := v.Runtime(broker, nil, streamstest.Quiet)
			streamstest.Start(t, r)
			// Two processes feed the view. Both notice the loss, and one of them begins the view
			// again.
			streamstest.Start(t, orderstatus.New(openRedis(t, cfg), streamstest.Quiet).Runtime(broker, nil,
				streamstest.Quiet))
			streamstest.CatchUp(t, r)
			asExpected(t, v, l)
			for i, lose := range c.losses {
				more := randomEvents(t, l, 1500, 1000)
				var writing sync.WaitGroup
				writing.Go(func() { l.Write(t, more...) })
				if err := lose(); err != nil {
					t.Fatal(err)
				}
				writing.Wait()
				waitUntilRepaired(t, fmt.Sprint("loss ", i, " under writes"), v, client, r, l)
				if err := lose(); err != nil {
					t.Fatal(err)
				}
				waitUntilRepaired(t, fmt.Sprint("loss ", i, " in silence"), v, client, r, l)
			}
		})
	}
}

// waitUntilRepaired waits until the view's content is that of the events.
func waitUntilRepaired(
	t *testing.T, what string, v *orderstatus.View, client *redis.Client, r *streams.Runtime,
	l *streamstest.Log,
) {
	t.Helper()
	begun := time.Now()
	want, err := orderstatus.ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, what+" is made good", func() bool {
		got, err := v.Digest(t.Context(), event.Order)
		return err == nil && maps.Equal(got.Streams, want.Streams) // errors are temporary: a node may be unavailable
	})
	t.Logf("%s is made good in %v", what, time.Since(begun).Round(10*time.Millisecond))
	streamstest.CatchUp(t, r)

	references := map[string][]string{}
	for id := range l.Versions {
		references[referenceOf(id)] = append(references[referenceOf(id)], id)
	}
	docs := client.Documents(orderstatus.Name)
	for reference, ids := range references {
		slices.Sort(ids)
		if got, err := docs.Lookup(t.Context(), reference); err != nil || !slices.Equal(got, ids) {
			t.Fatalf("%s: %s leads to %d orders, not to %d (%v)", what, reference, len(got), len(ids), err)
		}
	}
	polltest.Until(t, "positions stand at the end of the log", func() bool {
		positions, err := v.Positions(t.Context(), event.Order.Topic)
		status, err2 := v.Status(t.Context())
		if errors.Join(err, err2) != nil || len(positions) != streamstest.Partitions || status.Lag != 0 {
			return false
		}
		var newest event.Position
		for _, p := range positions {
			if p.Watermark.Compare(newest) > 0 {
				newest = p.Watermark
			}
		}
		return newest == l.Events[len(l.Events)-1].Position
	})
}

// TestLostReferenceChangesTheDigest checks that verify detects a missing reference, which a query
// would miss, even if all documents exist.
func TestLostReferenceChangesTheDigest(t *testing.T) {
	t.Parallel()
	cfg := start(t, nil)
	v := orderstatus.New(openRedis(t, cfg), streamstest.Quiet)
	l := &streamstest.Log{Versions: map[string]uint64{}}
	if err := v.Apply(t.Context(), records(randomEvents(t, l, 1200, 3000))); err != nil {
		t.Fatal(err)
	}
	asExpected(t, v, l)
	var id string
	for id = range l.Versions {
		break
	}
	conn, err := net.Dial("tcp", cfg.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	key := "millrace:orderstatus:v2:ref:{orderstatus:v2:00}:" + referenceOf(id)
	if _, err := fmt.Fprintf(conn, "*2\r\n$3\r\nDEL\r\n$%d\r\n%s\r\n", len(key), key); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	if _, err := conn.Read(answer); err != nil || string(answer) != ":1\r\n" {
		t.Fatalf("%q, %v", answer, err)
	}
	got, err := v.Digest(t.Context(), event.Order)
	if err != nil {
		t.Fatal(err)
	}
	want, err := orderstatus.ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	if got.Streams[id] == want.Streams[id] {
		t.Error("the order's reference is gone, and the digest is as before")
	}
}
