package kafka_test

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func stopAfter(t *testing.T, c *kafka.Cluster) {
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
}

func client(t *testing.T, brokers string) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func write(t *testing.T, c *kgo.Client, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func createTopic(t *testing.T, c *kgo.Client) kadm.TopicDetail {
	t.Helper()
	admin := kadm.NewClient(c)
	if _, err := admin.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	var detail kadm.TopicDetail
	polltest.Until(t, "the topic has a leader", func() bool {
		topics, err := admin.ListTopics(t.Context(), "t")
		detail = topics["t"]
		return err == nil && detail.Err == nil && len(detail.Partitions) == 1 && detail.Partitions[0].Leader > 0
	})
	return detail
}

// TestRestartNode checks that a killed node returns with its data, behind the same
// proxy.
func TestRestartNode(t *testing.T) {
	t.Parallel()
	var through atomic.Int64
	c := &kafka.Cluster{Advertise: func(_, port int) (int, error) { return proxy(t, port, &through), nil }}
	stopAfter(t, c)
	from := time.Now()
	brokers := c.Brokers(t)
	mb, err := c.ResidentMB(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("1 node is ready after %.1f s, %d MB", time.Since(from).Seconds(), mb)
	k := client(t, brokers)
	createTopic(t, k)
	write(t, k, "a")
	if err := c.KillNode(0); err != nil {
		t.Fatal(err)
	}
	from = time.Now()
	if err := c.RestartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("it is back after %.1f s", time.Since(from).Seconds())
	write(t, k, "b")
	if end := end(t, k); end != 2 {
		t.Errorf("the topic ends at %d, want 2", end)
	}
	if through.Load() == 0 {
		t.Error("no connection went through the proxy")
	}
}

// TestThreeNodesSurviveTheLossOfOne checks that three nodes work without any one of them.
func TestThreeNodesSurviveTheLossOfOne(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts three servers")
	}
	c := &kafka.Cluster{Nodes: 3}
	stopAfter(t, c)
	from := time.Now()
	brokers := c.Brokers(t)
	for i := range 3 {
		mb, err := c.ResidentMB(i)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("3 nodes are ready after %.1f s, node %d has %d MB", time.Since(from).Seconds(), i, mb)
	}
	k := client(t, brokers)
	detail := createTopic(t, k)
	if n := len(detail.Partitions[0].Replicas); n != 3 {
		t.Fatalf("%d replicas, want 3", n)
	}
	write(t, k, "a")
	leader := int(detail.Partitions[0].Leader) - 1
	if err := c.KillNode(leader); err != nil {
		t.Fatal(err)
	}
	write(t, k, "b")
	if err := c.RestartNode(t.Context(), leader); err != nil {
		t.Fatal(err)
	}
	other := (leader + 1) % 3
	if err := c.PauseNode(other); err != nil {
		t.Fatal(err)
	}
	write(t, k, "c")
	if err := c.ResumeNode(other); err != nil {
		t.Fatal(err)
	}
	if end := end(t, k); end != 3 {
		t.Errorf("the topic ends at %d, want 3", end)
	}
}

func end(t *testing.T, k *kgo.Client) int64 {
	t.Helper()
	ends, err := kadm.NewClient(k).ListEndOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	o, _ := ends.Lookup("t", 0)
	return o.Offset
}

// proxy forwards connections to a port, and counts them.
func proxy(t *testing.T, to int, through *atomic.Int64) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			through.Add(1)
			out, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(to)))
			if err != nil {
				_ = in.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					_, _ = way[0].Close(), way[1].Close()
				}()
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
