package landing_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/apache/iceberg-go"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/landing"
)

// readings is a table of a custom topic, whose values look like "cellar=11.5".
var readings = declare.Table{
	Namespace: "weather",
	Name:      "readings",
	Doc:       "What the thermometers say.",
	Topic:     "thermometers",
	Columns: []columnar.Field{
		{Name: "place", Type: iceberg.PrimitiveTypes.String, Required: true},
		{Name: "celsius", Type: iceberg.PrimitiveTypes.Float64, Required: true},
	},
	Sort: []declare.Sort{{Column: "place"}},
	Rows: func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) {
		return rows{
			place:   to.Column(0).(*columnar.Bytes),
			celsius: to.Column(1).(*columnar.Float64s),
		}, nil
	},
}

// rows converts records to rows. The lander fills in the origin columns.
type rows struct {
	place   *columnar.Bytes
	celsius *columnar.Float64s
}

// Append implements declare.Rows. A record for which it fails becomes a dead letter.
func (to rows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	place, degrees, ok := bytes.Cut(r.Value, []byte("="))
	if !ok {
		return declare.Appended{}, errors.New("it is not place=degrees")
	}
	celsius, err := strconv.ParseFloat(string(degrees), 64)
	if err != nil {
		return declare.Appended{}, fmt.Errorf("degrees: %w", err)
	}
	to.place.Append(place)
	to.celsius.Append(celsius)
	return declare.Appended{Rows: 1, AsOf: r.Time}, nil
}

// A custom topic becomes a table: declare it, open a lake with it, and land it.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "readings")
	check(err)
	defer func() { check(os.RemoveAll(dir)) }()
	brokers, closeBroker := brokerWith(ctx, dir, "cellar=11.5", "attic=29", "attic is hot", "cellar=11.4")
	defer closeBroker()

	l, err := lake.Open(ctx, lake.Config{
		Warehouse: filepath.Join(dir, "warehouse"), // or s3://bucket/folder
		Catalog:   filepath.Join(dir, "catalog.db"),
		Tables:    []declare.Table{readings},
		Logger:    slog.New(slog.DiscardHandler),
	})
	check(err)
	defer func() { check(l.Close()) }()

	var deadLetters atomic.Int64
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- landing.Run(running, l, landing.Config{
			Brokers: []string{brokers},
			WriteDeadLetters: func(_ context.Context, records []landing.DeadLetter) error {
				for _, r := range records {
					fmt.Printf("dead letter: %q: %v\n", r.Value, r.Reason)
				}
				deadLetters.Add(int64(len(records)))
				return nil
			},
		})
	}()
	for landed := int64(0); landed < 4; { // until the table has all records of partition 0
		time.Sleep(10 * time.Millisecond)
		offsets, err := l.Applied(ctx, readings.Topic)
		check(err)
		landed = offsets[0]
	}
	stop()
	check(<-done)

	states, err := l.Tables(ctx)
	check(err)
	fmt.Printf("%s: %d rows\n", states[0].Name, states[0].Rows)
	// Output:
	// dead letter: "attic is hot": it is not place=degrees
	// weather.readings: 3 rows
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// brokerWith starts a broker whose topic thermometers has some values, and returns its address.
func brokerWith(ctx context.Context, dir string, values ...string) (brokers string, closeBroker func()) {
	log := slog.New(slog.DiscardHandler)
	b, err := embedded.Start(ctx, embedded.Config{DataDir: filepath.Join(dir, "kafka"), Logger: log})
	check(err)
	c := kafka.Config{Brokers: b.Addr(), ClientID: "thermometers", Logger: log}
	check(kafka.EnsureTopics(ctx, c, kafka.Topic{Name: readings.Topic, Partitions: 1}))
	p, err := kafka.NewTransactionalProducer(c, "thermometers-"+b.Boot())
	check(err)
	defer p.Close()
	check(p.Init(ctx))
	check(p.Begin())
	for _, v := range values {
		check(p.Produce(ctx, kafka.Record{Topic: readings.Topic, Value: []byte(v)}))
	}
	check(p.Commit(ctx))
	return b.Addr(), func() { check(b.Close()) }
}
