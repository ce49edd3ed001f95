// Package demo sets up a small shop in a running Millrace and plays a day of trading, so that a new
// user has data to look at. Run sends a few hundred commands that look like real ones.
//
// A story is a list of commands that depend on each other, for example those of one order. Stories
// are played concurrently, and the commands of a story in order. script.go writes the stories, and
// shop.go has the products and names.
//
// The commands depend on Config.Seed and Config.Orders only, and so do their ids and idempotency
// keys. So a second run changes nothing.
package demo

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// Config configures a run.
type Config struct {
	BaseURL  string                // of the server, for example "http://127.0.0.1:7400"
	Client   []client.Option       // token and TLS, if the server requires them
	Seed     uint64                // determines customers and orders; 0 means 1
	Orders   int                   // number of orders; 0 means 30
	Progress func(done, total int) // called after each command, never concurrently; may be nil
}

// Result is the outcome of a run, with an order to look at.
type Result struct {
	Commands map[string]int // accepted commands, by name: "PlaceOrder"
	Replayed int            // of Commands: accepted in an earlier run
	Refused  int            // commands that the server refused

	OrderID   string // of the last order
	Reference string // of the last order
	// Token is the token of the last order's last command. A query with this token sees all of the
	// order's changes.
	Token string
	SKU   string // of the first line of that order

	CustomerID string // of a customer with orders
	Identifier string // of that customer, as "<kind>:<value>"
}

const (
	defaultSeed   = 1
	defaultOrders = 30
	concurrency   = 8                // stories that are played at the same time
	retryFor      = 30 * time.Second // how long to retry while the server is unavailable
)

// Run sends the demo's commands. It counts a refused command and continues.
func Run(ctx context.Context, cfg Config) (Result, error) {
	server := client.New(cfg.BaseURL, retryFor, cfg.Client...)
	defer server.Close()
	setup, orders := script(cmp.Or(cfg.Seed, defaultSeed), cmp.Or(cfg.Orders, defaultOrders))
	p := &player{server: server, progress: cfg.Progress, result: Result{Commands: map[string]int{}}}
	for _, s := range slices.Concat(setup, orders) {
		p.total += len(s)
	}
	p.result.CustomerID, p.result.Identifier = sample(setup, orders)
	// Orders refer to products, customers and stock, so the setup must be complete before.
	if err := p.playAll(ctx, setup); err != nil {
		return p.result, err
	}
	if err := p.playAll(ctx, orders); err != nil {
		return p.result, err
	}
	return p.result, nil
}

// sample returns the customer of the last order that is not a guest's, and an identifier of them.
func sample(setup, orders []story) (customer, identifier string) {
	for _, s := range orders {
		if place, ok := s[0].(*orderv1.PlaceOrderRequest); ok && place.GetCustomerId() != "" {
			customer = place.GetCustomerId()
		}
	}
	for _, command := range slices.Concat(setup...) {
		if link, ok := command.(*identityv1.LinkIdentifiersRequest); ok && link.GetCustomerId() == customer {
			identifier = "anonymous_id:" + link.GetIdentifiers()[0].GetValue()
		}
	}
	return customer, identifier
}

// story is a list of commands that depend on each other, so they are sent in order.
type story []proto.Message

// player sends the commands of stories and counts their results. It is safe for concurrent use.
type player struct {
	server   *client.Client
	progress func(done, total int)
	total    int

	mu     sync.Mutex // protects the fields below
	done   int
	result Result
}

// playAll plays stories concurrently, and stops at the first error. The order in Result is the last
// story's.
func (p *player) playAll(ctx context.Context, stories []story) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrency)
	for i, s := range stories {
		group.Go(func() error { return p.play(ctx, s, i == len(stories)-1) })
	}
	return group.Wait()
}

// play sends the commands of a story in order.
func (p *player) play(ctx context.Context, s story, last bool) error {
	for _, command := range s {
		receipt, err := p.server.Send(ctx, command)
		// A refusal is a result, for example if a user has changed the data since an earlier run.
		// Any other error ends the demo.
		if _, refused := client.Refusal(err); err != nil && !refused {
			return fmt.Errorf("demo: %s: %w", client.Name(command), err)
		}
		p.record(command, receipt, last)
	}
	return nil
}

// record counts the result of a command. receipt is nil if it was refused.
func (p *player) record(command proto.Message, receipt *eventv1.Receipt, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	if receipt == nil {
		p.result.Refused++
	} else {
		p.result.Commands[client.Name(command)]++
	}
	if receipt.GetReplayed() {
		p.result.Replayed++
	}
	// The last order's token is that of its confirmation. The commands after that concern the
	// stock.
	if last {
		switch c := command.(type) {
		case *orderv1.PlaceOrderRequest:
			p.result.OrderID, p.result.Reference = c.GetOrderId(), c.GetReference()
			p.result.SKU = c.GetLines()[0].GetSku()
			p.result.Token = receipt.GetToken()
		case *orderv1.ConfirmOrderRequest:
			p.result.Token = receipt.GetToken()
		}
	}
	if p.progress != nil {
		p.progress(p.done, p.total)
	}
}
