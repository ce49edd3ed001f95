package kill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

const (
	clients         = 8
	impatient       = 2 // of them: they give up a command at the first error, and its outcome remains unknown
	commandTimeout  = 4 * time.Minute
	commandInterval = 6 * time.Millisecond // between two commands, over all clients: a steady load, not the maximum
	productCount    = 24                   // products that all clients trade in, so that they conflict
)

// load is traffic to all services that continues until it is stopped.
type load struct {
	stop   chan struct{}
	once   sync.Once
	group  errgroup.Group
	ticker *time.Ticker
	addr   string
}

var sequence atomic.Int64 // for everything that must be unique: keys, prices, references

func key(what string) string { return fmt.Sprintf("kill:%s:%d", what, sequence.Add(1)) }

func sku(n int) string { return fmt.Sprintf("KILL-%03d", n) }

// createProducts creates the products that the load trades in, with enough stock for all rows.
func createProducts(ctx context.Context, addr string) error {
	c := client.New(addr, commandTimeout)
	defer c.Close()
	for n := range productCount {
		for _, command := range []proto.Message{
			&catalogv1.ListProductRequest{
				Sku: sku(n), Title: fmt.Sprintf("Thing number %d", n),
				Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, IdempotencyKey: key("list"),
			},
			&inventoryv1.ReceiveStockRequest{
				Sku: sku(n), Quantity: 1_000_000, Reference: "PO-1", IdempotencyKey: key("receive"),
			},
		} {
			if _, err := c.Send(ctx, command); err != nil {
				return fmt.Errorf("%s: %w", client.Name(command), err)
			}
		}
	}
	return nil
}

// startLoad sends traffic to addr until end is called.
func startLoad(addr string) *load { return startLoadEvery(commandInterval, addr) }

// startLoadEvery sends a command to addr each time that an interval has passed, until end is called.
func startLoadEvery(interval time.Duration, addr string) *load {
	l := &load{stop: make(chan struct{}), ticker: time.NewTicker(interval), addr: addr}
	for n := range clients {
		l.group.Go(func() error { return l.runScenarios(n < impatient) })
	}
	return l
}

// end stops the load and returns once no command is in flight. It returns an error if a patient
// client was rejected, or did not receive its answer in time.
func (l *load) end() error {
	l.once.Do(func() { close(l.stop) })
	defer l.ticker.Stop()
	return l.group.Wait()
}

// runScenarios sends the commands of scenarios, one after the other, until the load is stopped. A
// client that gives up continues with another scenario after an unanswered command.
func (l *load) runScenarios(givesUp bool) error {
	wait := commandTimeout
	if givesUp {
		wait = 300 * time.Millisecond
	}
	c := client.New(l.addr, wait)
	defer c.Close()
	for {
	scenario:
		for _, command := range scenario() {
			select {
			case <-l.stop:
				return nil
			case <-l.ticker.C:
			}
			// The context is not cancelled: a command is retried until it is answered.
			_, err := c.Send(context.Background(), command)
			switch {
			case err == nil:
			case givesUp && errors.Is(err, client.ErrUnreachable):
				break scenario // and start another one
			default:
				return fmt.Errorf("%s: %w", client.Name(command), err)
			}
		}
	}
}

// scenario returns a random sequence of commands. Each requires the success of the ones before it.
func scenario() []proto.Message {
	switch n := rand.IntN(20); {
	case n < 12:
		return order()
	case n < 16:
		return []proto.Message{&catalogv1.SetPriceRequest{
			Sku: sku(rand.IntN(productCount)), Price: price(), IdempotencyKey: key("price"),
		}}
	case n < 18:
		return []proto.Message{&inventoryv1.ReceiveStockRequest{
			Sku: sku(rand.IntN(productCount)), Quantity: 100, Reference: "PO-2", IdempotencyKey: key("receive"),
		}}
	default:
		return customer()
	}
}

func order() []proto.Message {
	id, reference := uuid.Must(uuid.NewV7()).String(), fmt.Sprintf("K-%d", sequence.Add(1))
	what := sku(rand.IntN(productCount))
	s := []proto.Message{
		&orderv1.PlaceOrderRequest{OrderId: id, Reference: reference, Currency: "GBP", Country: "GB",
			Lines: []*orderv1.NewLine{newLine(what),
				newLine(sku(rand.IntN(productCount)))}, IdempotencyKey: key("place")},
		&inventoryv1.ReserveStockRequest{
			Sku: what, ReservationId: reference, Quantity: 1,
			TimeToLive: durationpb.New(24 * time.Hour), IdempotencyKey: key("reserve"),
		},
		&orderv1.AddLinesRequest{
			OrderId: id, AfterLine: 2,
			Lines: []*orderv1.NewLine{newLine(sku(rand.IntN(productCount)))}, IdempotencyKey: key("add"),
		},
	}
	if rand.IntN(4) == 0 {
		return append(s,
			&orderv1.CancelOrderRequest{OrderId: id, Reason: "ordered by mistake", IdempotencyKey: key("cancel")},
			&inventoryv1.ReleaseReservationRequest{Sku: what, ReservationId: reference, IdempotencyKey: key("release")})
	}
	return append(s,
		&orderv1.ConfirmOrderRequest{OrderId: id, IdempotencyKey: key("confirm")},
		&inventoryv1.CommitReservationRequest{Sku: what, ReservationId: reference, IdempotencyKey: key("commit")})
}

func newLine(sku string) *orderv1.NewLine {
	return &orderv1.NewLine{Sku: sku, Description: "a thing", Quantity: 1 + rand.Int64N(5), UnitPrice: price()}
}

// price returns a different price each time, so that setting it always changes something.
func price() *money.Money {
	pence := sequence.Add(1)
	return &money.Money{CurrencyCode: "GBP", Units: pence / 100, Nanos: int32(pence%100) * 10_000_000}
}

func customer() []proto.Message {
	id, n := uuid.Must(uuid.NewV7()).String(), sequence.Add(1)
	return []proto.Message{
		&customerv1.RegisterCustomerRequest{
			CustomerId: id, Reference: fmt.Sprintf("C-%d", n), Name: "A. Person",
			Email: fmt.Sprintf("p%d@example.com", n), Country: "GB", IdempotencyKey: key("register"),
		},
		&customerv1.ChangeAddressRequest{CustomerId: id, Address: &customerv1.Address{
			Recipient: "A. Person", Lines: []string{"1 Mill Lane"}, PostalCode: "CB1 0AA", City: "Cambridge", Country: "GB",
		}, IdempotencyKey: key("address")},
		&customerv1.SetConsentRequest{CustomerId: id, Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING,
			Granted: true, IdempotencyKey: key("consent")},
		&orderv1.PlaceOrderRequest{OrderId: uuid.Must(uuid.NewV7()).String(), CustomerId: &id,
			Reference: fmt.Sprintf("K-%d", n), Currency: "GBP", Country: "GB",
			Lines: []*orderv1.NewLine{newLine(sku(rand.IntN(productCount)))}, IdempotencyKey: key("place")},
	}
}
