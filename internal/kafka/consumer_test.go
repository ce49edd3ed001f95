package kafka_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
)

// member is a Consumer and the assignments that its group has made.
type member struct {
	*kafka.Consumer
	owned map[kafka.TopicPartition]bool
}

func groupOf(topic string) string { return "group-of-" + topic }

func (b broker) join(t *testing.T, starts map[kafka.TopicPartition]int64) *member {
	t.Helper()
	m := &member{owned: map[kafka.TopicPartition]bool{}}
	var err error
	m.Consumer, err = kafka.NewConsumer(kafka.ConsumerConfig{
		Config: b.Config, Group: groupOf(b.topic), Topics: []string{b.topic},
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

func (m *member) leave(t *testing.T) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// poll reads the given number of messages and returns them: values, and ends as "end 0:7".
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

// A consumer returns committed records only, from the offsets that Assigned and Seek give it, and
// the end after the last marker. Paused partitions return nothing.
func TestConsumerReadsCommittedRecordsFromOffsets(t *testing.T) {
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

// If the first records of a log were deleted, a reader from the beginning starts at the first
// remaining record.
func TestBeginningIsFirstRemainingRecord(t *testing.T) {
	t.Parallel()
	each(t, 3, func(t *testing.T, b broker) {
		for partition := range int32(3) {
			b.commitAndDelete(t, partition, 1, fmt.Sprint("a", partition), fmt.Sprint("b", partition))
		}
		m := b.join(t, nil)
		defer m.leave(t)
		read := func(want ...string) {
			t.Helper()
			var got []string
			for len(got) < len(want) {
				if v := m.poll(t, 1)[0]; !strings.HasPrefix(v, "end") { // an end may be reported more than once
					got = append(got, v)
				}
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		read("b0", "b1", "b2")
		if err := m.Seek(map[kafka.TopicPartition]int64{{Topic: b.topic, Partition: 1}: 0}); err != nil {
			t.Fatal(err)
		}
		read("b1")
	})
}

// Any other offset that the log does not have is an error, and nothing is read.
func TestOffsetsOutOfRange(t *testing.T) {
	t.Parallel()
	for _, offset := range []int64{1, 9} {
		t.Run(fmt.Sprint(offset), func(t *testing.T) {
			t.Parallel()
			each(t, 1, func(t *testing.T, b broker) {
				b.commitAndDelete(t, 0, 2, "a", "b", "c")
				m := b.join(t, map[kafka.TopicPartition]int64{{Topic: b.topic}: offset})
				defer m.leave(t)
				for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
					msg, err := m.Poll(100 * time.Millisecond)
					if msg != nil {
						t.Fatalf("got %+v", msg)
					}
					if errors.Is(err, kafka.ErrOutOfRange) {
						return
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				t.Fatal("Poll returned no error")
			})
		})
	}
}

// commitAndDelete writes a transaction to a partition and deletes the records before an offset.
func (b broker) commitAndDelete(t *testing.T, partition int32, before int64, values ...string) {
	t.Helper()
	var records []kafka.Record
	for _, v := range values {
		records = append(records, b.record(partition, "k", v))
	}
	commit(t, b.transactional(t, "tx"), records...)
	if err := fetchtest.New(t, strings.Split(b.Brokers, ","), b.topic+"-deleter").DeleteRecords(t.Context(), b.topic,
		partition, before); err != nil {
		t.Fatal(err)
	}
}

// A partition is revoked from one member before another one gets it.
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
				t.Fatalf("%d partitions have %d owners", len(all), owned)
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
					t.Fatalf("timed out: %s", what)
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
				t.Errorf("closed, but Revoked was not called for %v", m.owned)
			}
			if len(members) > 0 {
				settle("the others share")
			}
		}
	})
}

// A member that is gone before it gets its partitions does not keep them.
func TestMemberThatLeavesWhileItJoins(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, b broker) {
		m := b.join(t, nil)
		defer m.leave(t)
		owns := func(n int) func() bool {
			return func() bool {
				if _, err := m.Poll(20 * time.Millisecond); err != nil {
					t.Fatal(err)
				}
				return len(m.owned) == n
			}
		}
		polltest.Until(t, "the member has both partitions", owns(2))
		other := b.join(t, nil)
		polltest.Until(t, "the member gives one to the other", owns(1))
		other.leave(t)
		polltest.Until(t, "the member has both again", owns(2))
	})
}

// A partition that was paused when the member lost it is read when the member gets it back.
func TestAssignmentEndsPause(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, b broker) {
		m := b.join(t, nil)
		defer m.leave(t)
		m.poll(t, 2) // the ends of the empty partitions
		if err := m.Pause(slices.Collect(maps.Keys(m.owned))); err != nil {
			t.Fatal(err)
		}
		other := b.join(t, nil)
		owns := func(m *member, n int) bool {
			if _, err := m.Poll(20 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			return len(m.owned) == n
		}
		polltest.Until(t, "each member has a partition", func() bool { return owns(m, 1) && owns(other, 1) })
		other.leave(t)
		kept := maps.Clone(m.owned)
		polltest.Until(t, "the first member has both again", func() bool { return owns(m, 2) })
		for p := range m.owned {
			if !kept[p] {
				commit(t, b.transactional(t, "tx"), b.record(p.Partition, "k", "a"))
			}
		}
		var got []string
		for len(got) == 0 || got[len(got)-1] != "a" {
			got = append(got, m.poll(t, 1)...)
		}
	})
}

// victim is the environment variable that makes the test binary a member of a topic's group, to be
// killed.
const victim = "MILLRACE_TEST_MEMBER"

// beVictim prints when it owns partitions, and continues to poll.
func beVictim(brokersAndTopic string) error {
	brokers, topic, _ := strings.Cut(brokersAndTopic, " ")
	owns := make(chan struct{}, 1)
	m, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Config: kafka.Config{Brokers: brokers, Logger: quiet}, Group: groupOf(topic), Topics: []string{topic},
		Assigned: func(ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
			if len(ps) > 0 {
				owns <- struct{}{}
			}
			return nil
		},
		Revoked: func([]kafka.TopicPartition, bool) {},
	})
	for err == nil {
		_, err = m.Poll(50 * time.Millisecond)
		select {
		case <-owns:
			fmt.Println("owns")
		default:
		}
	}
	return err
}

// After the session timeout, the partitions of a killed member are assigned to others. The embedded
// broker detects dead members in another way.
func TestPartitionsOfKilledMemberAreReassigned(t *testing.T) {
	t.Parallel()
	b := newBroker(kafka.Config{Brokers: apache.Brokers(t), Logger: quiet})
	b.ensure(t, 4)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), victim+"="+b.Brokers+" "+b.topic), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the victim printed %q: %v", line, err)
	}
	m := b.join(t, nil)
	defer m.leave(t)
	owned := func(n int) func() bool {
		return func() bool {
			if _, err := m.Poll(20 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			return len(m.owned) == n
		}
	}
	polltest.Until(t, "both members have partitions", owned(2))
	from := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	polltest.Until(t, "the other member has all partitions", owned(4))
	t.Logf("a killed member's partitions are read again after %.1f s", time.Since(from).Seconds())
}

// Reserved and unknown properties are rejected. A consumer without a broker can be polled and
// closed.
func TestConsumerConfig(t *testing.T) {
	t.Parallel()
	none := kafka.ConsumerConfig{Config: kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet}, Group: "g",
		Topics: []string{"t"}}
	for property, want := range map[string]string{"isolation.level": "cannot be set",
		"enable.auto.offset.store": "cannot be set", "no.such.property": "no.such.property"} {
		cfg := none
		cfg.Extra = map[string]string{property: "true"}
		if _, err := kafka.NewConsumer(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", property, err)
		}
	}
	c, err := kafka.NewConsumer(none) // the client connects later
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
