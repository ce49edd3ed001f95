package streams_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// spread writes events as the relay does, with keys spread over the given number of partitions,
// regardless of the topic's number.
func (l log) spread(t *testing.T, partitions int32, events ...event.Event) {
	t.Helper()
	records := make([]kafka.Record, len(events))
	for i, e := range events {
		records[i] = l.Record(e)
		records[i].Partition = kafka.Partition([]byte(e.Stream), partitions)
		records[i].Headers = append(records[i].Headers, kafka.PartitionsHeader(partitions))
	}
	l.WriteRecords(t, records...)
}

// recreate deletes the topic and creates it again, empty.
func (l log) recreate(t *testing.T) {
	t.Helper()
	if err := server.Delete(t.Context(), l.on.Brokers, l.Topic); err != nil {
		t.Fatal(err)
	}
	streamstest.Eventually(t, "the topic is created again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return kafka.EnsureTopics(ctx, l.on, kafka.Topic{Name: l.Topic, Partitions: partitions}) == nil
	})
	again := streamstest.NewLog(t, l.on, l.Topic) // the previous producer has cached the deleted topic
	again.Events, again.Versions = l.Events, l.Versions
	*l.Log = *again
}

// follow runs a Follower of a sink that another runtime feeds.
func follow(t *testing.T, l log, sink streams.Sink) *streams.Watermarks {
	t.Helper()
	watermarks := streams.NewWatermarks()
	f := streams.NewFollower(streams.FollowConfig{
		Name: "view-of-" + l.Topic, Topics: []string{l.Topic}, Sink: sink, Watermarks: watermarks, Kafka: l.on,
		Every: 5 * time.Millisecond, Logger: streamstest.Quiet,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return watermarks
}

// Keys of a widened topic remain in their partitions. Waiting for an event waits for its partition,
// in the process that feeds the sink and in others, and never returns before the event is applied.
func TestWaitInWidenedTopic(t *testing.T) {
	t.Parallel()
	for _, wide := range []int{6, 8, 13} {
		for name, restarted := range map[string]bool{"while it is read": false, "while stopped": true} {
			t.Run(fmt.Sprintf("from 4 to %d %s", wide, name), func(t *testing.T) {
				t.Parallel()
				each(t, func(t *testing.T, on kafka.Config) {
					l, sink := newLog(t, on), newMemory()
					l.spread(t, partitions, l.events("s", 40, 80)...)
					r := start(t, config(l, sink))
					r.catchUp(t)
					if restarted {
						r.stop()
					}
					if err := server.AddPartitions(t.Context(), on.Brokers, l.Topic, wide); err != nil {
						t.Fatal(err)
					}
					if restarted {
						r = start(t, config(l, sink))
						r.catchUp(t)
					}
					others := follow(t, l, sink)
					events := l.events("s", 40, 40)
					l.spread(t, partitions, events...)
					for _, e := range events {
						for who, watermarks := range map[string]*streams.Watermarks{"runtime": r.watermarks, "follower": others} {
							ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
							err := watermarks.Wait(ctx, l.Topic, e.Stream, e.Position)
							cancel()
							if err != nil {
								t.Fatalf("%s, stream %s: %v", who, e.Stream, err)
							}
							if got := sink.version(e.Stream); got < e.Version {
								t.Fatalf("%s, stream %s: the sink has version %d after a wait for %d",
									who, e.Stream, got, e.Version)
							}
						}
					}
				})
			})
		}
	}
}

func (s *memory) version(stream string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.versions[stream]
}

// A recreated topic has other offsets. A sink with a position in the old one reads the new one from
// its beginning, whether the new one is shorter or longer than that position.
func TestTopicRecreated(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"and is shorter": 0, "and has grown past": 400} {
		t.Run(name+", while stopped", func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, on kafka.Config) {
				l, sink := newLog(t, on), newMemory()
				for range 40 { // each followed by a marker
					l.Write(t, l.events("s", 10, 1)...)
				}
				r := start(t, config(l, sink))
				r.catchUp(t)
				r.stop()
				watermarks := follow(t, l, sink)
				streamstest.Eventually(t, "the follower reports no lag", func() bool {
					lag, known := watermarks.Lag(l.Topic)
					return known && lag == 0
				})

				l.recreate(t)
				l.Write(t, l.Events...)
				l.Write(t, l.events("n", more, more)...) // new streams: no gap shows that they are missing
				streamstest.Eventually(t, "the follower reports that nothing of this topic is applied", func() bool {
					lag, known := watermarks.Lag(l.Topic)
					return known && lag >= uint64(len(l.Events))
				})
				r = start(t, config(l, sink))
				r.catchUp(t)
				sink.mustHave(t, l.Versions)
				r.stop()
				r = start(t, config(l, sink)) // and continues from there
				l.Write(t, l.events("s", 10, 10)...)
				r.catchUp(t)
				sink.mustHave(t, l.Versions)
			})
		})
	}
	t.Run("while it is read", func(t *testing.T) {
		t.Parallel()
		each(t, func(t *testing.T, on kafka.Config) {
			l, sink := newLog(t, on), newMemory()
			for range 40 {
				l.Write(t, l.events("s", 10, 1)...)
			}
			r := start(t, config(l, sink))
			r.catchUp(t)
			l.recreate(t)
			l.Write(t, l.Events...)
			l.Write(t, l.events("n", 400, 400)...)
			streamstest.Eventually(t, "the sink has all of the new topic", func() bool {
				return len(l.Versions) == sink.streams()
			})
			sink.mustHave(t, l.Versions)
		})
	})
}

func (s *memory) streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.versions)
}

// Positions that an earlier version saved have no topic id. They are taken for the current topic's,
// and get its id.
func TestPositionsOfEarlierVersion(t *testing.T) {
	t.Parallel()
	l, sink := newLog(t, shared), newMemory()
	l.Write(t, l.events("s", 10, 50)...)
	r := start(t, config(l, sink))
	r.catchUp(t)
	r.stop()
	sink.mu.Lock()
	for id, a := range sink.positions[l.Topic] {
		a.Topic, a.Partitions = "", 0
		sink.positions[l.Topic][id] = a
	}
	sink.mu.Unlock()
	_, before := sink.counts()
	r = start(t, config(l, sink))
	r.catchUp(t)
	streamstest.Eventually(t, "the positions contain the topic's id", func() bool {
		saved, _ := sink.Positions(t.Context(), l.Topic)
		for _, a := range saved {
			if a.Topic == "" {
				return false
			}
		}
		return len(saved) == partitions
	})
	if _, after := sink.counts(); after != before {
		t.Errorf("%d records were delivered again", after-before)
	}
	l.recreate(t)
	l.Write(t, l.Events...)
	l.Write(t, l.events("n", 100, 100)...)
	streamstest.Eventually(t, "the sink has all of the new topic", func() bool {
		return len(l.Versions) == sink.streams()
	})
}

// A topic that lost records which the sink has not read cannot complete it. The runtime stops and
// names a remedy.
func TestTopicTruncated(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 40, 80)...)
		r := start(t, config(l, sink))
		r.catchUp(t)
		r.stop()
		l.Write(t, l.events("s", 40, 80)...)
		if err := server.DeleteRecords(t.Context(), on.Brokers, l.Topic); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		err := streams.New(config(l, sink)).Run(ctx)
		if !errors.Is(err, kafka.ErrOutOfRange) || !strings.Contains(err.Error(), "restore the topic") {
			t.Fatalf("%v, want ErrOutOfRange and a remedy", err)
		}
	})
}
