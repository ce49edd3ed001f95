package streams_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// sealed takes a record for one of the relay if it has its header.
type sealed struct{}

// seal is the header.
var seal = event.Header{Key: "test-seal", Value: []byte("relay")}

func (sealed) CheckSeal(_ context.Context, r registry.Record, _ event.Event) (bool, error) {
	for _, h := range r.Headers {
		if h.Key == seal.Key {
			return string(r.Value) != "forged", nil
		}
	}
	return false, nil
}

// writeSealed publishes events as the relay does.
func (l log) writeSealed(t *testing.T, events ...event.Event) {
	t.Helper()
	records := make([]kafka.Record, len(events))
	for i, e := range events {
		records[i] = l.Record(e)
		records[i].Headers = append(records[i].Headers, seal)
	}
	l.WriteRecords(t, records...)
}

// parkingConfig is the configuration of a sink whose events are sealed.
func parkingConfig(t *testing.T, l log, sink streams.Sink) streams.Config {
	t.Helper()
	cfg := config(l, sink)
	cfg.Decoder = new(registry.Decoder)
	cfg.Decoder.CheckSeals(sealed{})
	return cfg
}

// poisoned returns whether a stream has an event that the sink cannot apply: those of every
// hundredth stream, at their second version.
func poisoned(r streams.Record) error {
	if strings.HasSuffix(r.Event.Stream, "00") && r.Event.Version == 2 {
		return errors.New("poison")
	}
	return nil
}

// An event that the sink cannot apply parks its stream: later events wait in order, across
// restarts, while other streams continue. When the code is corrected, a restart applies them.
func TestPoisonParksItsStream(t *testing.T) {
	t.Parallel()
	for name, poison := range map[string]func(*memory){
		"unreadable": func(s *memory) { s.unreadable = poisoned },
		"panic": func(s *memory) {
			s.setBefore(func(_ context.Context, records []streams.Record) error {
				for _, r := range records {
					if err := poisoned(r); err != nil {
						panic(err)
					}
				}
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, on kafka.Config) {
				l, sink := newLog(t, on), newMemory()
				poison(sink)
				const n = 1000
				l.writeSealed(t, l.events("s", n, 3*n)...)
				cfg := parkingConfig(t, l, sink)
				r := start(t, cfg)
				r.catchUp(t)
				healthy := maps.Clone(l.Versions)
				for i := 0; i < n; i += 100 {
					healthy[fmt.Sprintf("s-%d", i)] = 1
				}
				healthy["s-0"] = 3 // not poisoned
				sink.mustHave(t, healthy)
				if streams, events := r.Parked(); streams != 9 || events != 18 {
					t.Errorf("%d streams and %d events are parked, want 9 and 18", streams, events)
				}
				// After a restart, the streams are still parked, and further events wait.
				r.stop()
				r = start(t, cfg)
				l.writeSealed(t, l.events("s", n, n)...)
				r.catchUp(t)
				for stream := range healthy {
					if !strings.HasSuffix(stream, "00") {
						healthy[stream]++
					}
				}
				sink.mustHave(t, healthy)
				if streams, events := r.Parked(); streams != 9 || events != 27 {
					t.Errorf("%d streams and %d events are parked, want 9 and 27", streams, events)
				}
				r.stop()
				letters, _ := readDeadLetters(t, on, cfg.Name)
				attempts := map[string]int{}
				for _, m := range letters {
					attempts[header(m, streams.HeaderDeadLetterAttempts)]++
					if stack := header(m, streams.HeaderDeadLetterStack); (stack != "") !=
						(name == "panic" && header(m, streams.HeaderDeadLetterAttempts) != "0") {
						t.Errorf("the stack of %s is %q", m.Key, stack)
					}
				}
				if len(letters) != 27 || attempts["0"] != 18 {
					t.Errorf("%d dead letters, by attempts: %v", len(letters), attempts)
				}

				// The code is corrected.
				sink.unreadable = nil
				sink.setBefore(nil)
				r = start(t, cfg)
				streamstest.Eventually(t, "all events are applied", func() bool {
					streams, _ := r.Parked()
					applied, _ := sink.counts()
					return streams == 0 && applied == 4*n
				})
				l.writeSealed(t, l.events("s", n, n)...)
				r.catchUp(t)
				sink.mustHave(t, l.Versions)
				letters, _ = readDeadLetters(t, on, cfg.Name)
				for key, m := range letters {
					if m.Value != nil {
						t.Errorf("dead letter %s is left", key)
					}
				}
			})
		})
	}
}

// parkOne starts a sink of which one event is parked and one waits behind it, and returns what is
// needed to continue. Its stream is s-100, at the versions 2 and 3.
func parkOne(t *testing.T, on kafka.Config) (log, *memory, streams.Config, *running) {
	t.Helper()
	l, sink := newLog(t, on), newMemory()
	sink.unreadable = poisoned
	l.writeSealed(t, l.next("s-100"), l.next("s-100"), l.next("s-100"))
	l.writeSealed(t, l.events("t", 10, 50)...)
	cfg := parkingConfig(t, l, sink)
	r := start(t, cfg)
	r.catchUp(t)
	if streams, events := r.Parked(); streams != 1 || events != 2 {
		t.Fatalf("%d streams and %d events are parked, want 1 and 2", streams, events)
	}
	return l, sink, cfg, r
}

// setUnreadable changes what the sink can read, while it runs.
func (s *memory) setUnreadable(unreadable func(streams.Record) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreadable = unreadable
}

// Redrive applies parked events while new ones of their streams arrive, in order. One that fails
// again stays parked, with those behind it.
func TestRedriveWhileEventsArrive(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink, cfg, r := parkOne(t, on)
		r.Redrive()
		streamstest.Eventually(t, "it has failed again", func() bool {
			letters, _ := readDeadLetters(t, on, cfg.Name)
			for _, m := range letters {
				if n := header(m, streams.HeaderDeadLetterAttempts); n != "0" && n != "1" && n != "" {
					return true
				}
			}
			return false
		})
		if _, events := r.Parked(); events != 2 {
			t.Errorf("%d events are parked, want 2", events)
		}
		sink.setUnreadable(nil)
		for range 20 {
			l.writeSealed(t, l.next("s-100"))
			r.Redrive()
		}
		r.catchUp(t)
		streamstest.Eventually(t, "the stream is released", func() bool {
			r.Redrive()
			streams, _ := r.Parked()
			return streams == 0
		})
		sink.mustHave(t, l.Versions)
	})
}

// A sink that reads its log again applies the parked events that it reads.
func TestReadingAgainReleases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink, _, r := parkOne(t, on)
		sink.setUnreadable(nil)
		sink.flush()
		streamstest.Eventually(t, "everything is applied", func() bool {
			sink.mu.Lock()
			defer sink.mu.Unlock()
			return maps.Equal(sink.versions, l.Versions)
		})
		r.catchUp(t)
		if streams, events := r.Parked(); streams != 0 || events != 0 {
			t.Errorf("%d streams and %d events are parked", streams, events)
		}
	})
}

// An event whose dead letter somebody deletes is skipped. One whose dead letter was not written by
// a sink is not applied.
func TestDeletedAndForgedDeadLetters(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink, cfg, r := parkOne(t, on)
		r.stop()
		letters, _ := readDeadLetters(t, on, cfg.Name)
		producer, err := kafka.NewProducer(on)
		if err != nil {
			t.Fatal(err)
		}
		defer producer.Close()
		for key, m := range letters {
			letter := kafka.Record{Topic: streams.DeadLetterTopic, Partition: kafka.AnyPartition, Key: []byte(key)}
			if header(m, "ce_streamversion") == "3" { // forged; the one before it is deleted
				letter.Value, letter.Headers = []byte("forged"), m.Headers
			}
			if err := producer.Produce(t.Context(), letter); err != nil {
				t.Fatal(err)
			}
		}
		sink.unreadable = func(r streams.Record) error {
			if string(r.Event.Data) == "forged" {
				t.Error("a forged event was applied")
			}
			return nil
		}
		r = start(t, cfg)
		streamstest.Eventually(t, "the deleted event is skipped", func() bool {
			_, events := r.Parked()
			return events == 1
		})
		l.writeSealed(t, l.next("s-100"))
		r.catchUp(t)
		if streams, events := r.Parked(); streams != 1 || events != 2 {
			t.Errorf("%d streams and %d events are parked, want 1 and 2", streams, events)
		}
	})
}
