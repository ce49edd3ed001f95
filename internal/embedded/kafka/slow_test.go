package kafka_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/kafka"
)

// A coordinator that is slow to end a transaction delays the commit, but does not make it fail.
func TestSlowCoordinator(t *testing.T) {
	t.Parallel()
	const topic, commits = "t", 5
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		c.SleepControl(func() {
			late := time.NewTimer(500*time.Millisecond + rand.N(100*time.Millisecond))
			<-late.C
		})
		return nil, nil, false
	})
	p, err := kafka.NewTransactionalProducer(config(c.ListenAddrs()[0]), "p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range commits {
		if err := p.Begin(); err != nil {
			t.Fatal(err)
		}
		if err := p.Produce(t.Context(), kafka.Record{Topic: topic, Key: []byte("k"), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
		commit(t, p)
	}
	a := admin(t, c.ListenAddrs()[0])
	defer a.Close()
	if got := high(t, a, topic); got != 2*commits { // a record and the end of its transaction
		t.Fatalf("the topic ends at %d, want %d", got, 2*commits)
	}
}
