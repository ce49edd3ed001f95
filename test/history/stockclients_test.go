package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
	"github.com/millrace/millrace/internal/client"
)

// fleet is the set of processes that serve the inventory at the moment. Some may be dead.
type fleet struct {
	mu        sync.Mutex
	addresses map[int]string
	changed   chan struct{}
}

func newFleet() *fleet { return &fleet{addresses: map[int]string{}, changed: make(chan struct{})} }

// serves sets the address of process i. It is empty if the process is dead.
func (f *fleet) serves(i int, addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if delete(f.addresses, i); addr != "" {
		f.addresses[i] = addr
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// dial connects to any process, and waits while there is none.
func (f *fleet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	for {
		f.mu.Lock()
		changed := f.changed
		var all []string
		for _, addr := range f.addresses {
			all = append(all, addr)
		}
		f.mu.Unlock()
		if len(all) > 0 {
			return new(net.Dialer).DialContext(ctx, "tcp", all[rand.IntN(len(all))])
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// stockClients work on a few SKUs concurrently.
type stockClients struct {
	number int

	mu           sync.Mutex
	operations   []stockOp
	reservations []stockCall // recent ones, for all clients to commit and release
}

const (
	skusAtOnce         = 3
	fullSKU            = 250             // number of versions, then a new SKU
	monthLong          = 720 * time.Hour // no reservation expires during the test
	oneSending         = 5 * time.Second
	reservationsOfLate = 24
)

// run works on a fleet until ctx ends. Sendings in flight at that time may finish.
func (w *stockClients) run(ctx context.Context, f *fleet) error {
	var g errgroup.Group
	for i := range w.number {
		g.Go(func() error {
			transport := &http.Transport{DialContext: f.dial}
			defer transport.CloseIdleConnections()
			return newStockClient(w, i, transport).run(ctx)
		})
	}
	return g.Wait()
}

// answers returns how many sendings were answered.
func (w *stockClients) answers() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, op := range w.operations {
		if op.Answer.Outcome != lost {
			n++
		}
	}
	return n
}

type stockClient struct {
	*stockClients
	number   int
	api      inventoryv1connect.InventoryServiceClient
	rounds   [skusAtOnce]int
	versions map[string]uint64
}

func newStockClient(w *stockClients, number int, transport *http.Transport) *stockClient {
	return &stockClient{
		stockClients: w, number: number, versions: map[string]uint64{},
		api: inventoryv1connect.NewInventoryServiceClient(&http.Client{Transport: transport}, "http://127.0.0.1"),
	}
}

func (c *stockClient) run(ctx context.Context) error {
	for ctx.Err() == nil {
		request := c.next()
		if err := c.settle(ctx, request); err != nil {
			return err
		}
	}
	return nil
}

// next chooses a command at random.
func (c *stockClient) next() stockCall {
	at := rand.IntN(skusAtOnce)
	sku := fmt.Sprintf("sku-%d-%d", at, c.rounds[at])
	if c.versions[sku] >= fullSKU {
		c.rounds[at]++
	}
	request := stockCall{SKU: sku, Key: uuid.NewString()}
	switch chance := rand.IntN(100); {
	case chance < 12:
		request.Kind, request.Quantity = receive, 1+rand.Int64N(5)
	case chance < 22:
		request.Kind, request.Quantity = adjust, -3+rand.Int64N(6)
		if request.Quantity >= 0 {
			request.Quantity++
		}
	case chance < 50:
		request.Kind, request.Quantity, request.Reservation = reserve, 1+rand.Int64N(4), uuid.NewString()
	case chance < 56: // repeat a reservation that exists or existed
		request = c.recent(request)
		request.Kind, request.Quantity = reserve, 1+rand.Int64N(4)
	case chance < 72:
		request = c.recent(request)
		request.Kind = commit
	case chance < 86:
		request = c.recent(request)
		request.Kind = release
	default:
		request.Kind, request.Key = getNow, ""
	}
	if request.Kind == reserve {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.reservations) == reservationsOfLate {
			c.reservations = c.reservations[1:]
		}
		c.reservations = append(c.reservations, request)
	}
	return request
}

// recent returns a command on a recent reservation.
func (c *stockClient) recent(request stockCall) stockCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reservations) == 0 {
		request.Reservation = "none"
		return request
	}
	of := c.reservations[rand.IntN(len(c.reservations))]
	request.SKU, request.Reservation, request.Quantity = of.SKU, of.Reservation, of.Quantity
	return request
}

// settle sends a command, and repeats it under its key until it is answered. Some clients give up
// at once. An accepted command is sometimes repeated, and must get the same answer.
func (c *stockClient) settle(ctx context.Context, request stockCall) error {
	for {
		a, err := c.send(request)
		if err == nil && a.Outcome == stored && rand.IntN(20) == 0 {
			_, err = c.send(request)
		}
		if err != nil || a.Outcome != lost || request.Key == "" || rand.IntN(10) == 0 || ctx.Err() != nil {
			return err
		}
	}
}

// send makes and records one sending. It fails only if the answer makes no sense.
func (c *stockClient) send(request stockCall) (stockAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), oneSending)
	defer cancel()
	op := stockOp{Client: c.number, Asked: request, Call: moment()}
	answer, err := c.call(ctx, request)
	op.Return = moment()
	if rejection, ok := client.Refusal(err); ok {
		if err = answer.setRejection(rejection); err != nil {
			return answer, fmt.Errorf("%s %s: %w", request.Kind, request.SKU, err)
		}
	} else if err != nil {
		answer = stockAnswer{Outcome: lost}
		if code := connect.CodeOf(err); connect.IsWireError(err) && code != connect.CodeUnavailable && code != connect.CodeAborted {
			return answer, fmt.Errorf("%s %s: %w", request.Kind, request.SKU, err)
		}
	}
	op.Answer = answer
	c.versions[request.SKU] = max(c.versions[request.SKU], answer.Version)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.operations = append(c.operations, op)
	return answer, nil
}

// setRejection reads a rejection. "reservation_unknown" and "stock_unknown" have no numbers.
func (a *stockAnswer) setRejection(r *eventv1.Rejection) error {
	*a = stockAnswer{Outcome: refused, Rule: r.GetRule()}
	if r.GetRule() == "" {
		return errors.New("rejection without a rule: " + r.GetReason())
	}
	if len(r.GetFacts()) == 0 {
		return nil
	}
	var err1, err2 error
	a.OnHand, err1 = strconv.ParseInt(r.GetFacts()["on_hand"], 10, 64)
	a.Reserved, err2 = strconv.ParseInt(r.GetFacts()["reserved"], 10, 64)
	return errors.Join(err1, err2)
}

func (c *stockClient) call(ctx context.Context, request stockCall) (stockAnswer, error) {
	switch request.Kind {
	case receive:
		r, err := c.api.ReceiveStock(ctx,
			connect.NewRequest(&inventoryv1.ReceiveStockRequest{Sku: request.SKU, Quantity: request.Quantity,
				IdempotencyKey: request.Key}))
		if err != nil {
			return stockAnswer{}, err
		}
		return accepted(r.Msg.GetReceipt()), nil
	case adjust:
		r, err := c.api.AdjustStock(ctx,
			connect.NewRequest(&inventoryv1.AdjustStockRequest{Sku: request.SKU, Delta: request.Quantity,
				Reason: "counted", IdempotencyKey: request.Key}))
		if err != nil {
			return stockAnswer{}, err
		}
		return accepted(r.Msg.GetReceipt()), nil
	case reserve:
		r, err := c.api.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
			Sku: request.SKU, ReservationId: request.Reservation, Quantity: request.Quantity, TimeToLive: durationpb.New(monthLong), IdempotencyKey: request.Key,
		}))
		if err != nil {
			return stockAnswer{}, err
		}
		a := accepted(r.Msg.GetReceipt())
		a.Expires = r.Msg.GetExpiresAt().AsTime().String()
		return a, nil
	case commit:
		r, err := c.api.CommitReservation(ctx,
			connect.NewRequest(&inventoryv1.CommitReservationRequest{Sku: request.SKU,
				ReservationId: request.Reservation, IdempotencyKey: request.Key}))
		if err != nil {
			return stockAnswer{}, err
		}
		return accepted(r.Msg.GetReceipt()), nil
	case release:
		r, err := c.api.ReleaseReservation(ctx,
			connect.NewRequest(&inventoryv1.ReleaseReservationRequest{Sku: request.SKU,
				ReservationId: request.Reservation, IdempotencyKey: request.Key}))
		if err != nil {
			return stockAnswer{}, err
		}
		return accepted(r.Msg.GetReceipt()), nil
	case getNow:
		r, err := c.api.GetStock(ctx, connect.NewRequest(&inventoryv1.GetStockRequest{Sku: request.SKU}))
		if err != nil {
			return stockAnswer{}, err
		}
		return stockAnswer{Outcome: looked, Version: r.Msg.GetVersion(), OnHand: r.Msg.GetOnHand(),
			Reserved: r.Msg.GetReserved()}, nil
	case readLog:
	}
	return stockAnswer{}, fmt.Errorf("unknown kind of request %s", request.Kind)
}

func accepted(r *eventv1.Receipt) stockAnswer {
	a := stockAnswer{Outcome: stored, Version: r.GetVersion(), Token: r.GetToken()}
	if r.GetReplayed() {
		a.Outcome = replayed
	}
	return a
}
