package kill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// bisectEnv makes landers bisect a batch to find a record that is not an event, as they do if an
// error does not name the record. As an environment variable it applies to restarted processes too.
const bisectEnv = "MILLRACE_FAILPOINTS=lake.unnamed=on"

// garbageRows returns the rows in which a lander breaks while it writes a dead letter, or just
// after that.
func garbageRows(at string) []row {
	var rows []row
	for _, st := range []step{
		{role: "lake", point: "lake.orders_events.about to park", name: "dead letter of orders_events", at: 2},
		{role: "lake", point: "lake.orders_events.parked, offsets not moved", name: "dead letter of orders_events written", at: 2, after: true},
		{role: "lake", point: "lake.orders_current.about to park", name: "dead letter of orders_current", at: 2},
	} {
		name := at + st.role + "/" + st.name + "/"
		quick := at != "" && st.after
		rows = append(rows,
			row{name: name + "kill", step: st, fault: withGarbage(st.kill), check: checkGarbage, quick: quick})
		rows = append(rows, row{name: name + st.failure(), step: st, fault: withGarbage(st.fail), check: checkGarbage})
		if at == "" {
			rows = append(rows,
				row{name: name + "zombie", step: st, fault: withGarbage(st.zombie), check: checkGarbage})
		}
	}
	return rows
}

// garbagePrefix is the prefix of the value of each record that is not an event.
const garbagePrefix = "garbage:"

func isGarbage(m kafka.Message) bool { return bytes.HasPrefix(m.Value, []byte(garbagePrefix)) }

// withGarbage runs a fault while records that are not events arrive beside the load. Half of them
// have the headers of an event, half have none.
func withGarbage(f fault) fault {
	return func(ctx context.Context, s *system) error {
		ctx, end := context.WithCancel(ctx)
		defer end()
		producing, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- s.produceGarbage(producing) }()
		err := f(ctx, s)
		stop()
		return errors.Join(err, <-done)
	}
}

// Few garbage records are produced, because each one costs several commits until it is found.
const (
	garbageBatchSize = 5
	garbageInterval  = 200 * time.Millisecond
	garbageBatches   = 6
)

// produceGarbage produces records that are not events, until all are written or ctx is done.
func (s *system) produceGarbage(ctx context.Context) error {
	producer, err := kafka.NewProducer(s.kafka())
	if err != nil {
		return err
	}
	defer producer.Close()
	tick := time.NewTicker(garbageInterval)
	defer tick.Stop()
	for range garbageBatches {
		var records []kafka.Record
		for n := range garbageBatchSize {
			e := event.Event{
				ID: uuid.Must(uuid.NewV7()), Aggregate: event.Order.Name, Stream: uuid.NewString(), Version: 1,
				Type: "millrace.order.v1.OrderPlaced", OccurredAt: time.Now(), RecordedAt: time.Now(),
			}
			r := kafka.Record{
				Topic: event.Order.Topic, Partition: kafka.AnyPartition,
				Key: []byte(e.Stream), Value: []byte(garbagePrefix + e.ID.String()),
			}
			if n%2 == 0 {
				r.Headers = e.Headers()
			}
			records = append(records, r)
		}
		if err := producer.ProduceAll(context.WithoutCancel(ctx), records); err != nil {
			return fmt.Errorf("produce garbage: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// checkGarbage expects a dead letter with the unchanged value for each garbage record and each
// table that its topic feeds, and no other dead letters of the lake.
func checkGarbage(ctx context.Context, s *system) error {
	want := map[string]string{} // values, by the keys of their dead letters
	tables := []string{"orders_events", "order_lines", "orders_current"}
	err := s.readAll(ctx, event.Order.Topic, func(m kafka.Message) error {
		if isGarbage(m) {
			for _, table := range tables {
				want[fmt.Sprintf("lake/%s|%s|%d|%d", table, m.Topic, m.Partition, m.Offset)] = string(m.Value)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(want) == 0 {
		return errors.New("no garbage record on the topic: the row shows nothing")
	}
	have := map[string]string{}
	err = s.readAll(ctx, streams.DeadLetterTopic, func(m kafka.Message) error {
		if strings.HasPrefix(string(m.Key), "lake/") {
			have[string(m.Key)] = string(m.Value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var wrong []error
	for key, value := range want {
		if have[key] != value {
			wrong = append(wrong, fmt.Errorf("dead letter %s has value %q, want %q", key, have[key], value))
		}
		delete(have, key)
	}
	for key, value := range have {
		wrong = append(wrong, fmt.Errorf("dead letter %s is of an event, %.40q", key, value))
	}
	return errors.Join(wrong[:min(len(wrong), 5)]...)
}

// readAll reads the current content of a topic.
func (s *system) readAll(ctx context.Context, topic string, each func(kafka.Message) error) error {
	admin, err := kafka.NewAdmin(s.kafka())
	if err != nil {
		return err
	}
	defer admin.Close()
	end, err := admin.EndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	return kafka.ReadAll(ctx, s.kafka(), topic, nil, end, each)
}
