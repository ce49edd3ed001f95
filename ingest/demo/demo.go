// Package demo opens a small shop in a running Millrace and lets it trade for a day: a few hundred
// commands that look like real ones, so that a new user has something to look at. They are the same
// each time, under the same idempotency keys, so a system that has seen them does not change.
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
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// Config says where the shop opens and how much it trades.
type Config struct {
	BaseURL  string                // of the server: "http://127.0.0.1:7400"
	Client   []client.Option       // token and TLS, where the server asks for them
	Seed     uint64                // another seed, other customers and orders; 0 means 1
	Orders   int                   // 0 means 30
	Progress func(done, total int) // called after each command, by one goroutine at a time; may be nil
}

// Result describes what happened, and names an order to look at.
type Result struct {
	Commands map[string]int // that the server took, by name: "PlaceOrder"
	Replayed int            // of Commands: the server had taken them in an earlier run
	Refused  int            // commands that the server did not take

	OrderID   string // of the last order
	Reference string // of the last order
	Token     string // of the receipt of the last order's last command: a query that carries it sees the order as it is now
	SKU       string // of the first line of that order
}

const (
	defaultSeed   = 1
	defaultOrders = 30
	atOnce        = 8
	patience      = 30 * time.Second
)

// Run plays the demo. A refused command is counted, and the shop continues.
func Run(ctx context.Context, cfg Config) (Result, error) {
	server := client.New(cfg.BaseURL, patience, cfg.Client...)
	defer server.Close()
	goods, trade := script(cmp.Or(cfg.Seed, defaultSeed), cmp.Or(cfg.Orders, defaultOrders))
	p := &player{server: server, progress: cfg.Progress, result: Result{Commands: map[string]int{}}}
	for _, s := range slices.Concat(goods, trade) {
		p.total += len(s)
	}
	if err := p.playAll(ctx, goods); err != nil {
		return p.result, err
	}
	if err := p.playAll(ctx, trade); err != nil {
		return p.result, err
	}
	return p.result, nil
}

// story is commands that follow from one another, and so are sent one after the other.
type story []proto.Message

type player struct {
	server   *client.Client
	progress func(done, total int)
	total    int

	mu     sync.Mutex // guards what follows
	done   int
	result Result
}

// playAll plays several stories at a time; the result's order is that of the last.
func (p *player) playAll(ctx context.Context, stories []story) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, s := range stories {
		group.Go(func() error { return p.play(ctx, s, i == len(stories)-1) })
	}
	return group.Wait()
}

func (p *player) play(ctx context.Context, s story, last bool) error {
	for _, command := range s {
		receipt, err := p.server.Send(ctx, command)
		if _, refused := client.Refusal(err); err != nil && !refused {
			return fmt.Errorf("demo: %s: %w", client.Name(command), err)
		}
		p.account(command, receipt, last)
	}
	return nil
}

// account books the outcome of a command; the receipt is nil if it was refused.
func (p *player) account(command proto.Message, receipt *eventv1.Receipt, last bool) {
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
	if last {
		switch c := command.(type) {
		case *orderv1.PlaceOrderRequest:
			p.result.OrderID, p.result.Reference, p.result.SKU = c.GetOrderId(), c.GetReference(), c.GetLines()[0].GetSku()
			p.result.Token = receipt.GetToken()
		case *orderv1.ConfirmOrderRequest:
			p.result.Token = receipt.GetToken()
		}
	}
	if p.progress != nil {
		p.progress(p.done, p.total)
	}
}
