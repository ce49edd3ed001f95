package kafka_test

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/kafka"
)

// A broker that has just started, or missed its heartbeats, is fenced for a while. Kafka then
// refuses topics as if the number of replicas were wrong, and accepts them a moment later.
func TestTopicsAreCreatedOnceABrokerIsUnfenced(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	var refusals atomic.Int32
	cluster.ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if refusals.Load() == 2 {
			return nil, nil, false // the cluster itself responds
		}
		refusals.Add(1)
		request := r.(*kmsg.CreateTopicsRequest)
		response := request.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, wanted := range request.Topics {
			topic := kmsg.NewCreateTopicsResponseTopic()
			topic.Topic, topic.ErrorCode = wanted.Topic, kerr.InvalidReplicationFactor.Code
			topic.ErrorMessage = kmsg.StringPtr("All brokers are currently fenced")
			response.Topics = append(response.Topics, topic)
		}
		return response, nil, true
	})
	cfg := kafka.Config{Brokers: strings.Join(cluster.ListenAddrs(), ","), ClientID: "test",
		Logger: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: "t", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	if n := refusals.Load(); n != 2 {
		t.Errorf("the topic was refused %d times, want 2", n)
	}
}
