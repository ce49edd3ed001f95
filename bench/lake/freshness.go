package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go/table"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// freshness measures how long events wait until they can be queried: from the producer's time
// stamp, when the event is passed to Kafka's client, to the first state of the table in the catalog
// that contains it. The lander commits at its default interval. The producer commits ten
// transactions a second, and events wait for that too.
type freshness struct {
	millrace
	maintenance bool // whether maintenance runs in the same process, every ten seconds
}

// freshness returns the measurement of one lander, with or without maintenance beside it.
func (b *bench) freshness(maintenance bool) freshness {
	f := freshness{millrace{bench: b, landers: 1}, maintenance}
	f.name = "freshness/" + f.variant()
	return f
}

// variant returns the name of the variant.
func (f freshness) variant() string {
	if f.maintenance {
		return "beside_maintenance"
	}
	return "landing_alone"
}

// distribution is the distribution of the waits, in milliseconds. Its names in JSON are those that
// reports and earlier results use.
type distribution struct {
	EventsPerSecond float64 `json:"events_per_second"`
	Median          int     `json:"p50_ms"`
	P90             int     `json:"p90_ms"`
	P99             int     `json:"p99_ms"`
	Max             int     `json:"max_ms"`
	Commits         int     `json:"commits"` // number of observed commits
	Files           int64   `json:"files"`   // number at the end
}

// observation is the next offset of a partition in the table at a moment: every row before it could
// be queried. A partition's observations are in the order of time, and so also of offsets.
type observation struct {
	at   time.Time
	next int64
}

// measure lands a topic while events are produced at a rate, and returns the distribution of the
// waits.
func (f freshness) measure(ctx context.Context, rate int64, duration time.Duration) (d distribution, err error) {
	topic := strings.NewReplacer("/", "-", "_", "-").Replace(f.Name())
	if err := kafka.EnsureTopics(ctx, f.kafka, kafka.Topic{Name: topic, Partitions: int32(f.partitions)}); err != nil {
		return d, err
	}
	w, err := openWarehouse(ctx, f.location())
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.create(ctx, events); err != nil {
		return d, err
	}
	env := []string{"MILLRACE_LAKE_MAINTENANCE_EVERY=0s"}
	if f.maintenance {
		env = []string{"MILLRACE_LAKE_MAINTENANCE_EVERY=10s"}
	}
	// The lander runs before the first event is produced.
	p, err := f.start(ctx, w, topic, env...)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, p.Kill()) }()

	observed := make([][]observation, f.partitions)
	ends := make(chan map[int32]int64, 1) // from the producer, when it has finished, to the watcher
	// Produce and watch at the same time. The watcher ends when the table has all that was
	// produced.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.EventsPerSecond, err = f.produce(ctx, topic, rate, duration)
		if err != nil {
			return err
		}
		end, err := f.ends(ctx, topic)
		ends <- end
		return err
	})
	g.Go(func() (err error) {
		d.Commits, err = f.watch(ctx, p, w, topic, observed, ends)
		return err
	})
	if err := g.Wait(); err != nil {
		return d, err
	}
	if d.Files, _, err = w.dataFiles(context.WithoutCancel(ctx), events); err != nil {
		return d, err
	}
	return d, d.fill(context.WithoutCancel(ctx), w, observed)
}

// transactionsPerSecond is the number of transactions per second of a producer.
const transactionsPerSecond = 10

// produce sends events at a rate, and returns the rate that it achieved, which is lower if the
// broker cannot keep up.
func (f freshness) produce(ctx context.Context, topic string, rate int64, duration time.Duration) (float64, error) {
	var values [][]byte // generated once and repeated, because generating them is slow
	for i := range min(rate, eventsInMemory) {
		values = append(values, asProtobuf.append(nil, i))
	}
	cfg := f.kafka
	cfg.Extra = map[string]string{"batch.size": "1000000"}
	p, err := kafka.NewTransactionalProducer(cfg, topic)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if err := p.Init(ctx); err != nil {
		return 0, err
	}
	started := time.Now()
	tick := time.NewTicker(time.Second / transactionsPerSecond)
	defer tick.Stop()
	n := int64(0)
	for time.Since(started) < duration {
		if err := p.Begin(); err != nil {
			return 0, err
		}
		// Send the events that are due by now, to catch up after a slow transaction, but at most
		// those of two intervals.
		due := min(int64(time.Since(started).Seconds()*float64(rate)), n+2*rate/transactionsPerSecond)
		for ; n < due; n++ {
			r := kafka.Record{
				Topic: topic, Partition: int32(n % int64(f.partitions)), Value: values[n%int64(len(values))],
			}
			if err := p.Produce(ctx, r); err != nil {
				return 0, err
			}
		}
		if err := p.Commit(ctx); err != nil {
			return 0, err
		}
		progress("%s: %d events, of %d a second", f.Name(), n, rate)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	return float64(n) / time.Since(started).Seconds(), nil
}

// ends returns the end of each partition: the next offset of the table once it has everything.
func (f freshness) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	admin, err := kafka.NewAdmin(f.kafka)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	return admin.HighWatermarks(ctx, topic)
}

// watch polls the table and records when its offsets change, until they have reached the ends. So
// the measured waits are up to pollInterval too long.
func (f freshness) watch(
	ctx context.Context, p *process.Process, w *warehouse, topic string,
	observed [][]observation, ends <-chan map[int32]int64,
) (commits int, err error) {
	var end map[int32]int64
	var location string
	return commits, f.await(ctx, p, func() (bool, error) {
		if end == nil {
			select {
			case end = <-ends:
			default:
			}
		}
		t, err := w.catalog.LoadTable(ctx, table.Identifier{namespace, events})
		if err != nil {
			return false, err
		}
		now, moved, done := time.Now(), false, end != nil
		for partition := range observed {
			// The property is absent before the first commit, which results in 0.
			property := fmt.Sprintf("millrace.next-offset.%s.%d", topic, partition)
			next, _ := strconv.ParseInt(t.Properties()[property], 10, 64)
			if all := observed[partition]; next > 0 && (len(all) == 0 || all[len(all)-1].next < next) {
				observed[partition] = append(all, observation{now, next})
				moved = true
			}
			done = done && next >= end[int32(partition)]
		}
		// Maintenance also replaces the metadata, but does not move the offsets.
		if moved && location != t.MetadataLocation() {
			commits++
		}
		location = t.MetadataLocation()
		return done, nil
	})
}

// fill computes the distribution: for each row, the time from its timestamp, which the producer
// set, to the first observation of the table with the row.
func (d *distribution) fill(ctx context.Context, w *warehouse, observed [][]observation) error {
	t, err := w.catalog.LoadTable(ctx, table.Identifier{namespace, events})
	if err != nil {
		return err
	}
	_, batches, err := t.Scan(table.WithSelectedFields("_partition", "_offset", "_timestamp")).ToArrowRecords(ctx)
	if err != nil {
		return err
	}
	var waits []int64 // number of rows by wait in milliseconds
	var rows int64
	for batch, err := range batches {
		if err != nil {
			return err
		}
		column := func(name string) int { return batch.Schema().FieldIndices(name)[0] }
		partitions := batch.Column(column("_partition")).(*array.Int32).Int32Values()
		offsets := batch.Column(column("_offset")).(*array.Int64).Int64Values()
		times := batch.Column(column("_timestamp")).(*array.Timestamp).TimestampValues()
		for i, offset := range offsets {
			produced := time.UnixMicro(int64(times[i]))
			wait := firstSeen(observed[partitions[i]], offset).Sub(produced).Milliseconds()
			// waits is a histogram with a bucket per millisecond, which grows to the longest wait.
			for int64(len(waits)) <= wait {
				waits = append(waits, 0)
			}
			waits[max(wait, 0)]++ // the stamp is in whole milliseconds
			rows++
		}
		batch.Release()
	}
	d.Median, d.P90, d.P99 = quantile(waits, rows, 0.5), quantile(waits, rows, 0.9), quantile(waits, rows, 0.99)
	d.Max = len(waits) - 1
	return nil
}

// firstSeen returns when an offset could first be queried: the time of the first observation of a
// higher next offset. The observations are in order, so it searches by bisection.
func firstSeen(all []observation, offset int64) time.Time {
	low, high := 0, len(all)-1
	for low < high {
		if middle := (low + high) / 2; all[middle].next > offset {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return all[low].at
}

// quantile returns the longest wait, in milliseconds, of the given share of the rows with the
// shortest waits.
func quantile(waits []int64, rows int64, share float64) int {
	need := int64(math.Ceil(share * float64(rows)))
	for ms, n := range waits {
		if need -= n; need <= 0 {
			return ms
		}
	}
	return len(waits) - 1
}
