package served

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams/streamstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answers returns vectors of a query, of n entities.
func answers(t *testing.T, n int) (*online.Query, []online.Vector) {
	t.Helper()
	l := newEventLog()
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("customer %d", i)
		l.add("sales", i%partitions, sale{Entity: names[i], Key: "1", At: start.UnixMicro(), Amount: int64(i), Country: "GB"})
	}
	s := storeOf(t, groupOf(features.Week), l, map[string][]int{"sales": {len(l.all["sales"][0]), len(l.all["sales"][1])}})
	q, err := s.Compile("sales")
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Lookup(t.Context(), q, names, start, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q, found
}

// TestLog: vectors that are added are on the topic, and Read returns the newest ones, in the order in
// which they were served. Other records are counted. What is in the queue at the end is written.
func TestLog(t *testing.T) {
	cfg := streamstest.NewBroker(t)
	if s, err := Read(t.Context(), cfg, 10); err != nil || len(s.Vectors) != 0 {
		t.Fatalf("before the first one: %+v, %v", s, err)
	}
	const n = 100
	q, vectors := answers(t, n)
	served := start
	l := NewLog(LogConfig{Sample: 1, Kafka: cfg, Partitions: 3, Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time { served = served.Add(time.Second); return served }})
	stop := run(t, l)
	for i := range n / 2 {
		l.Add(q, vectors[i:i+1], start)
	}
	polltest.Until(t, "half of them are written", func() bool { return l.Written() == n/2 })
	for i := n / 2; i < n; i++ {
		l.Add(q, vectors[i:i+1], start)
	}
	stop()
	if l.Written() != n || l.Dropped() != 0 {
		t.Fatalf("%d vectors were written and %d dropped", l.Written(), l.Dropped())
	}
	p, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Produce(t.Context(), kafka.Record{Topic: Topic, Partition: 0, Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}

	for limit, first := range map[int]int{n: 0, 2 * n: 0, 7: n - 7} {
		s, err := Read(t.Context(), cfg, limit)
		if err != nil || s.Unreadable != 1 || len(s.Vectors) != n-first {
			t.Fatalf("limit %d: %d vectors and %d others, %v", limit, len(s.Vectors), s.Unreadable, err)
		}
		for i, v := range s.Vectors {
			at := event.Time(start.Add(time.Duration(first+i+1) * time.Second))
			want := messageOf(q, &vectors[first+i], start, at)
			if !proto.Equal(v.ServedVector, want) {
				t.Fatalf("limit %d: vector %d is %v; want %v", limit, i, v, want)
			}
		}
	}
}

// run runs a log until stop.
func run(t *testing.T, l *Log) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullLog: vectors that do not fit into the queue are dropped and counted, and Add returns.
func TestFullLog(t *testing.T) {
	q, vectors := answers(t, 1)
	l := NewLog(LogConfig{Sample: 1, Now: time.Now})
	for range queueSize + 3 {
		l.Add(q, vectors, start)
	}
	if l.Dropped() != 3 || len(l.queue) != queueSize {
		t.Errorf("%d dropped and %d in the queue; want 3 and %d", l.Dropped(), len(l.queue), queueSize)
	}
}

// TestUnreachableLog: what brokers do not take is dropped when the log ends. Nothing waits for them.
func TestUnreachableLog(t *testing.T) {
	q, vectors := answers(t, 5)
	l := NewLog(LogConfig{Sample: 1, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Kafka: kafka.Config{Brokers: "127.0.0.1:1", Logger: slog.New(slog.DiscardHandler)}})
	stop := run(t, l)
	l.Add(q, vectors, start)
	stop()
	if l.Dropped() != 5 || l.Written() != 0 {
		t.Errorf("%d dropped, %d written; want 5 and 0", l.Dropped(), l.Written())
	}
}

// TestSample: the share of the vectors that are kept is about the one asked for.
func TestSample(t *testing.T) {
	q, vectors := answers(t, 1000)
	for sample, want := range map[float64][2]int{0: {0, 0}, 0.1: {40, 200}, 0.5: {350, 650}, 1: {1000, 1000}} {
		l := NewLog(LogConfig{Sample: sample, Now: time.Now})
		l.Add(q, vectors, start)
		if n := len(l.queue); n < want[0] || n > want[1] {
			t.Errorf("sample %g kept %d of 1000", sample, n)
		}
	}
}

// TestSampleChanges: a log that keeps nothing creates no topic, and it starts when its sample is raised.
func TestSampleChanges(t *testing.T) {
	q, vectors := answers(t, 5)
	cfg := streamstest.NewBroker(t)
	l := NewLog(LogConfig{Kafka: cfg, Partitions: 1, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	stop := run(t, l)
	l.Add(q, vectors, start)
	if n := len(l.queue); n != 0 {
		t.Errorf("%d vectors are kept, want none", n)
	}
	l.SetSample(7)
	l.Add(q, vectors, start)
	polltest.Until(t, "the vectors are written", func() bool { return l.Written() == 5 })
	l.SetSample(-1)
	l.Add(q, vectors, start)
	stop()
	if l.Written() != 5 || l.Dropped() != 0 {
		t.Errorf("%d written, %d dropped; want 5 and 0", l.Written(), l.Dropped())
	}
}

// TestAddCopies: the vectors of a lookup are reused, and those of the log are not.
func TestAddCopies(t *testing.T) {
	q, vectors := answers(t, 1)
	l := NewLog(LogConfig{Sample: 1, Now: time.Now})
	l.Add(q, vectors, start)
	want := proto.CloneOf((<-l.queue))
	l.Add(q, vectors, start)
	for i := range vectors[0].Values {
		vectors[0].Values[i].Int = -1
		clear(vectors[0].Values[i].Texts)
	}
	have := <-l.queue
	if have.ServedAt = want.ServedAt; !proto.Equal(have, want) {
		t.Errorf("%v; want %v", have, want)
	}
}

// TestWithheld: a vector that was withheld from its caller is not in the log.
func TestWithheld(t *testing.T) {
	q, vectors := answers(t, 3)
	vectors[1].Entity = ""
	l := NewLog(LogConfig{Sample: 1, Now: time.Now})
	l.Add(q, vectors, start)
	if n := len(l.queue); n != 2 {
		t.Errorf("%d vectors are in the log, want 2", n)
	}
}

// FuzzDecode: any value of a record is a vector that can be encoded again, or an error.
func FuzzDecode(f *testing.F) {
	for _, m := range []*featuresv1.ServedVector{
		{}, {Group: "g", Version: 1, Entity: "e", Values: []*featuresv1.ServedValue{{}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x0a\xff"))
	f.Fuzz(func(t *testing.T, value []byte) {
		m, err := decode(value)
		if err != nil {
			return
		}
		for _, v := range m.GetValues() {
			if r := resultOf(v); !r.Equal(resultOf(valueOf(v.GetFeature(), r))) {
				t.Errorf("%v is not kept", v)
			}
			_ = text(resultOf(v)) // must not panic
		}
		if _, err := record(m); err != nil {
			t.Error(err)
		}
		if m.GetEntity() == "" || !m.GetAt().IsValid() {
			t.Errorf("%v was accepted", m)
		}
	})
}
