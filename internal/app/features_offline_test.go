package app

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/polltest"
)

// monetary asks Feast's offline store for what a customer has spent up to now.
func monetary(ctx context.Context, addr, token, customer string) (amount float64, err error) {
	f, err := flight.NewClientWithMiddleware(addr, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	both, err := f.DoExchange(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	if err != nil {
		return 0, err
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "customer_id", Type: arrow.BinaryTypes.String},
		{Name: "event_timestamp", Type: arrow.FixedWidthTypes.Timestamp_us}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	b.Field(0).(*array.StringBuilder).Append(customer)
	b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(time.Now().Add(time.Minute).UnixMicro()))
	w := flight.NewRecordWriter(both, ipc.WithSchema(schema))
	w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: []byte(
		`{"api":"get_historical_features","feature_refs":["customer_value:monetary_sum_lifetime"]}`)})
	err = errors.Join(w.Write(b.NewRecordBatch()), w.Close(), both.CloseSend())
	if err != nil && !errors.Is(err, io.EOF) { // of a stream that was refused, whose error Recv returns
		return 0, err
	}
	r, err := flight.NewRecordReader(both)
	if err != nil {
		return 0, err
	}
	defer r.Release()
	for r.Next() {
		amount += r.RecordBatch().Column(2).(*array.Float64).Value(0)
	}
	return amount, r.Err()
}

// TestTrainingSetOfAnOrder: Feast's offline store gives an order that was placed before, from the log
// and from ClickHouse, to callers with the right to features.
func TestTrainingSetOfAnOrder(t *testing.T) {
	t.Parallel()
	const reader, other = "reader-0123456789-0123456789", "other-0123456789-0123456789"
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("reader:"+reader+"\nother:"+other+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, roles := range map[string][]Role{
		"log":        {Commands, Relay, Features},
		"clickhouse": {Commands, Relay, Lake, Features, Query},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := embeddedConfig(t)
			m := Shop()
			if name == "clickhouse" {
				useEngine(t, &c)
				m.Views = nil
			}
			c.Auth.Tokens = tokens
			c.Auth.Rights = map[string][]string{"reader": {"queries.features", "commands"}, "other": {"queries.order"}}
			p := startEmbedded(t, c, m, roles...)
			if have := p.history != nil; have != (name == "clickhouse") {
				t.Fatalf("tables in ClickHouse: %v", have)
			}
			commands := client.New(p.Addr(), time.Minute, client.WithToken(reader))
			defer commands.Close()
			customer := uuid.NewString()
			_, err := commands.Send(t.Context(), &orderv1.PlaceOrderRequest{
				Currency: "GBP", Country: "GB", CustomerId: proto.String(customer), IdempotencyKey: "one",
				Lines: []*orderv1.NewLine{{Sku: "MUG", Description: "Mug", Quantity: 2,
					UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 4, Nanos: 500_000_000}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			// The order is on the log a moment after it was accepted.
			polltest.Until(t, "the training set has the order", func() bool {
				amount, err := monetary(t.Context(), p.addr("feast_offline"), reader, customer)
				if err != nil {
					t.Log(err)
				}
				return amount == 9
			})
			for token, code := range map[string]codes.Code{other: codes.PermissionDenied, "unknown": codes.Unauthenticated} {
				if _, err := monetary(t.Context(), p.addr("feast_offline"), token, customer); status.Code(err) != code {
					t.Errorf("a caller without the right is answered %v, want %v", err, code)
				}
			}
		})
	}
}
