package kafka_test

import (
	"errors"
	"fmt"
	"testing"

	librdkafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/kafka"
)

// Only errors that end with the election of a leader, or with its propagation, are retried.
func TestLeaderChangeErrors(t *testing.T) {
	t.Parallel()
	for code, want := range map[librdkafka.ErrorCode]bool{
		librdkafka.ErrNotLeaderForPartition: true,
		librdkafka.ErrLeaderNotAvailable:    true,
		librdkafka.ErrFencedLeaderEpoch:     true,
		// A topic was widened, and the broker does not know its new partitions.
		librdkafka.ErrUnknownLeaderEpoch:       true,
		librdkafka.ErrUnknownTopicOrPart:       true,
		librdkafka.ErrOffsetNotAvailable:       true,
		librdkafka.ErrTopicAuthorizationFailed: false,
		librdkafka.ErrTimedOut:                 false,
	} {
		err := fmt.Errorf("offsets: %w", librdkafka.NewError(code, "", false))
		if got := kafka.LeaderChanges(err); got != want {
			t.Errorf("%v: %v, want %v", code, got, want)
		}
	}
	if kafka.LeaderChanges(errors.New("other")) || kafka.LeaderChanges(nil) {
		t.Error("another error is classified as a leader change")
	}
}
