package kafka_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// member is a Consumer and what its group told it.
type member struct {
	*kafka.Consumer
	owned map[kafka.TopicPartition]bool
}

func (b broker) join(t *testing.T, starts map[kafka.TopicPartition]int64) *member {
	t.Helper()
	m := &member{owned: map[kafka.TopicPartition]bool{}}
	var err error
	m.Consumer, err = kafka.NewConsumer(kafka.ConsumerConfig{
		Config: b.Config, Group: "group-of-" + b.topic, Topics: []string{b.topic},
		Assigned: func(ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
			for _, p := range ps {
				m.owned[p] = true
			}
			return starts
		},
		Revoked: func(ps []kafka.TopicPartition, _ bool) {
			for _, p := range ps {
				delete(m.owned, p)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// poll reads until the messages are as many as wanted, and says what came: values, and ends as "end 0:7".
func (m *member) poll(t *testing.T, want int) []string {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(30 * time.Second); len(got) < want; {
		msg, err := m.Poll(100 * time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case time.Now().After(deadline):
			t.Fatalf("got %v, want %d messages", got, want)
		case msg == nil:
		case msg.End:
			got = append(got, fmt.Sprintf("end %d:%d", msg.Partition, msg.Offset))
		default:
			got = append(got, string(msg.Value))
		}
	}
	return got
}

func TestConsumerReadsWhatIsCommittedFromWhereItIsTold(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		p := b.transactional(t, "tx")
		commit(t, p, b.record(0, "k", "a"), b.record(0, "k", "b")) // offsets 0, 1; the marker is 2
		begin(t, p, b.record(0, "k", "aborted"))                   // 3; 4
		b.flushed(t, 4)
		if err := p.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
		commit(t, p, b.record(0, "k", "c")) // 5; 6

		events := kafka.TopicPartition{Topic: b.topic}
		m := b.join(t, map[kafka.TopicPartition]int64{events: 1})
		defer func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}()
		expectMessages := func(want ...string) {
			t.Helper()
			if got := m.poll(t, len(want)); !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		expectMessages("b", "c", "end 0:7") // past the last marker
		if ends, err := m.Ends(t.Context(), b.topic); err != nil || !maps.Equal(ends, map[int32]int64{0: 7}) {
			t.Fatalf("ends %v, %v", ends, err)
		}
		if err := m.Seek(map[kafka.TopicPartition]int64{events: 0}); err != nil {
			t.Fatal(err)
		}
		expectMessages("a", "b", "c", "end 0:7")
		if err := m.Seek(map[kafka.TopicPartition]int64{events: 5}); err != nil {
			t.Fatal(err)
		}
		expectMessages("c", "end 0:7")

		if err := m.Pause([]kafka.TopicPartition{events}); err != nil {
			t.Fatal(err)
		}
		commit(t, p, b.record(0, "k", "d"))
		for range 5 {
			if msg, err := m.Poll(100 * time.Millisecond); msg != nil || err != nil {
				t.Fatalf("paused, but got %v, %v", msg, err)
			}
		}
		if err := m.Resume([]kafka.TopicPartition{events}); err != nil {
			t.Fatal(err)
		}
		expectMessages("d", "end 0:9")
		if err := m.Store(map[kafka.TopicPartition]int64{events: 9}); err != nil {
			t.Fatal(err)
		}
	})
}

// A partition is let go by one member before another has it.
func TestConsumersNeverOwnAPartitionTwice(t *testing.T) {
	t.Parallel()
	each(t, 4, func(t *testing.T, b broker) {
		var members []*member
		check := func() (owned int) {
			t.Helper()
			all := map[kafka.TopicPartition]bool{}
			for _, m := range members {
				if msg, err := m.Poll(20 * time.Millisecond); err != nil {
					t.Fatal(msg, err)
				}
			}
			for _, m := range members {
				owned += len(m.owned)
				maps.Copy(all, m.owned)
			}
			if owned != len(all) {
				t.Fatalf("%d partitions are owned %d times", len(all), owned)
			}
			return owned
		}
		shared := func() bool {
			return check() == 4 && !slices.ContainsFunc(members, func(m *member) bool { return len(m.owned) == 0 })
		}
		settle := func(what string) {
			t.Helper()
			for deadline := time.Now().Add(30 * time.Second); !shared(); {
				if time.Now().After(deadline) {
					t.Fatalf("never: %s", what)
				}
			}
		}
		for n := range 3 {
			members = append(members, b.join(t, nil))
			settle(fmt.Sprintf("%d members share", n+1))
		}
		for len(members) > 0 {
			m := members[0]
			members = members[1:]
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if len(m.owned) != 0 {
				t.Errorf("closed, and still told to own %v", m.owned)
			}
			if len(members) > 0 {
				settle("the others share")
			}
		}
	})
}

func TestConsumerConfig(t *testing.T) {
	t.Parallel()
	none := kafka.ConsumerConfig{Config: kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet}, Group: "g", Topics: []string{"t"}}
	for property, want := range map[string]string{"isolation.level": "not yours", "enable.auto.offset.store": "not yours", "no.such.property": "no.such.property"} {
		cfg := none
		cfg.Extra = map[string]string{property: "true"}
		if _, err := kafka.NewConsumer(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", property, err)
		}
	}
	c, err := kafka.NewConsumer(none) // connecting is the client's own affair
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := c.Poll(time.Millisecond); msg != nil || err != nil {
		t.Errorf("without a broker: %v, %v", msg, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
