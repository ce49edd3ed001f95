package sql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	icebergsql "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/lake/maintenance"
	lakesql "github.com/millrace/millrace/lake/sql"
	"github.com/millrace/millrace/lake/tables"
)

// In a landed State table, ClickHouse sees one row per key, both with pending deletes and after
// they are compacted. As-of queries see the rows of their moment.
func TestStateTable(t *testing.T) {
	t.Parallel()
	bucket := objects.Config(t)
	for name, c := range map[string]struct {
		warehouse string
		store     lakesql.S3
		spread    bool // by partition fields that a client adds
	}{
		"folder":      {warehouse: filepath.Join(t.TempDir(), "warehouse")},
		"partitioned": {warehouse: filepath.Join(t.TempDir(), "warehouse"), spread: true},
		"bucket": {
			warehouse: "s3://" + bucket.Bucket + "/" + uuid.NewString(),
			store:     lakesql.S3{Endpoint: bucket.Endpoint, Region: bucket.Region, AccessKey: bucket.AccessKey, SecretKey: bucket.SecretKey},
		},
	} {
		t.Run(name, func(t *testing.T) {
			catalog := filepath.Join(t.TempDir(), "catalog.db")
			l, err := lake.Open(t.Context(), lake.Config{
				Warehouse: c.warehouse, S3: lakeS3(c.store), Catalog: catalog, Tables: tables.All(), Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			land := lander(t, l)

			const orders = 20
			var placed, confirmed []event.Event
			for i := range orders {
				id := uuid.NewString()
				placed = append(placed, orderEvent(id, 1, &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
					OrderId: id, Currency: "GBP", OrderedAt: timestamppb.Now(), Total: &money.Money{CurrencyCode: "GBP", Units: int64(i), Nanos: 1},
				}}}))
				if i%2 == 0 {
					confirmed = append(confirmed, orderEvent(id, 2, &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{
						OrderId: id, ConfirmedAt: timestamppb.Now(),
					}}}))
				}
			}
			if c.spread { // some rows are from before
				land(placed[:orders/2])
				spread(t, catalog, table.Identifier{declare.Namespace, "orders_current"})
				land(placed[orders/2:])
			} else {
				land(placed)
			}
			then := offsetsOf(t, l)
			land(confirmed)
			name := lake.Name{declare.Namespace, "orders_current"}
			summary, err := l.Summarize(t.Context(), name)
			if err != nil || summary.Rows != orders || summary.RowsInFiles != orders+orders/2 || summary.DeleteFiles == 0 {
				t.Fatalf("%+v, %v", summary, err)
			}
			s := lakesql.New(func(ctx context.Context, _ func(string) bool) ([]lakesql.Table, error) {
				states, err := l.Tables(ctx)
				return only(states, "orders_current"), err
			}, clickhousetest.Shared(t).Client(), c.store)
			const header = "\"status\",\"n\",\"orders\",\"total\",\"versions\"\n"
			const query = "SELECT status, count() AS n, uniqExact(order_id) AS orders, sum(total) AS total, sum(version) AS versions FROM orders_current GROUP BY status ORDER BY status"
			past := func(when string) {
				t.Helper()
				states := func(ctx context.Context, wanted func(string) bool) (lakesql.Resolved, error) {
					states, err := l.TablesAsOf(ctx, lake.AsOf{Offsets: map[string]map[int32]int64{event.Order.Topic: then}}, wanted)
					return lakesql.Resolved{Tables: only(states, "orders_current")}, err
				}
				body, _, err := s.RunOn(t.Context(), states, query, lakesql.FormatCSV)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(body)
				if err := errors.Join(err, body.Close()); err != nil {
					t.Fatal(err)
				}
				if got, want := string(b), fmt.Sprintf("%q,20,20,190.00000002,20\n", "placed"); got != header+want {
					t.Errorf("as of the offsets %v, %s: %s", then, when, got)
				}
			}
			want := fmt.Sprintf("%q,10,10,90.00000001,20\n%q,10,10,100.00000001,10\n", "confirmed", "placed")
			if got := ask(t, s, query, lakesql.FormatCSV); got != header+want {
				t.Errorf("with deletes: %s", got)
			}
			const left = "SELECT count() AS n FROM orders_current WHERE status = 'placed'"
			if got := ask(t, s, left, lakesql.FormatCSV); got != "\"n\"\n10\n" {
				t.Errorf("with deletes, %s: %s", left, got)
			}
			past("with deletes")
			if _, err := l.Maintain(t.Context(), name, maintenance.Config{DutyCycle: 1, DeleteShare: 1e-9}, nil); err != nil {
				t.Fatal(err)
			}
			if summary, err = l.Summarize(t.Context(), name); err != nil || summary.RowsInFiles != orders || summary.DeleteFiles != 0 {
				t.Errorf("%+v, %v", summary, err)
			}
			if got := ask(t, s, query, lakesql.FormatCSV); got != header+want {
				t.Errorf("without deletes: %s", got)
			}
			past("without deletes")
		})
	}
}

// spread partitions a table of orders, as a client would: by a column that changes, and by the key.
func spread(t *testing.T, file string, name table.Identifier) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	c, err := icebergsql.NewCatalog("millrace", db, icebergsql.SQLite, nil)
	if err != nil {
		t.Fatal(err)
	}
	have, err := c.LoadTable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	tx := have.NewTransaction()
	err = tx.UpdateSpec(true).
		AddField("status", iceberg.IdentityTransform{}, "by_status").
		AddField("order_id", iceberg.BucketTransform{NumBuckets: 3}, "by_order").Commit()
	if err == nil {
		_, err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// only returns one of the tables, for SQL.
func only(states []lake.TableState, name string) (tables []lakesql.Table) {
	for _, s := range states {
		if s.Name == name {
			tables = append(tables, lakesql.Table{Name: s.Name, MetadataLocation: s.MetadataLocation, Location: s.Location})
		}
	}
	return tables
}

// offsetsOf returns the offsets up to which the orders' topic has landed.
func offsetsOf(t *testing.T, l *lake.Lake) map[int32]int64 {
	t.Helper()
	applied, err := l.Applied(t.Context(), event.Order.Topic)
	if err != nil {
		t.Fatal(err)
	}
	return applied
}

// lander lands a lake's tables. It returns a function that puts order events on their topic and
// waits until they have landed.
func lander(t *testing.T, l *lake.Lake) func(events []event.Event) {
	t.Helper()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	producer := fetchtest.New(t, []string{b.Addr()}, "shop-"+b.Boot())
	for _, agg := range event.Aggregates() {
		if err := producer.CreateTopic(t.Context(), agg.Topic, 1); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- landing.Run(ctx, l, landing.Config{
			Brokers: []string{b.Addr()}, CommitInterval: 40 * time.Millisecond, WriteDeadLetters: func(_ context.Context, p []landing.DeadLetter) error { return p[0].Reason },
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(events []event.Event) {
		t.Helper()
		records := make([]fetchtest.Record, len(events))
		for i, e := range events {
			records[i] = fetchtest.Event(0, e)
		}
		if err := producer.Commit(t.Context(), event.Order.Topic, records...); err != nil {
			t.Fatal(err)
		}
		ends, err := producer.Ends(t.Context(), event.Order.Topic)
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the events have landed", func() bool {
			applied, err := l.Applied(t.Context(), event.Order.Topic)
			if err != nil {
				t.Fatal(err)
			}
			return applied[0] >= ends[0]
		})
	}
}

func orderEvent(id string, version uint64, m *orderv1.OrderEvent) event.Event {
	data, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	r := m.ProtoReflect()
	kind := string(r.WhichOneof(r.Descriptor().Oneofs().ByName("event")).Message().FullName())
	now := event.Time(time.Now())
	return event.Event{
		ID: uuid.Must(uuid.NewV7()), Aggregate: event.Order.Name, Stream: id, Version: version, Type: kind, Data: data,
		OccurredAt: now, RecordedAt: now, Position: event.Position{Sequence: version},
	}
}

// lakeS3 returns the lake's settings of an object store that the engine reads.
func lakeS3(s lakesql.S3) lake.S3 {
	return lake.S3{Endpoint: s.Endpoint, Region: s.Region, AccessKey: s.AccessKey, SecretKey: s.SecretKey}
}
