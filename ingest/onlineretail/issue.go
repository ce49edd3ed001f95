package onlineretail

import (
	"context"
	"strconv"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// outcome is what the server made of a command.
type outcome struct {
	accepted int    // how many of the command's lines it took
	refused  string // why it did not take the others; empty if it took the command
	replayed bool   // it had taken all before
}

// Rules and facts of the services' refusals.
const (
	ruleKeyReused = "idempotency_key_reused"
	factLines     = "lines"
)

// issue sends a command. The error is of a server that gave no answer; a refusal is an outcome.
func (im *importer) issue(ctx context.Context, c command) (outcome, error) {
	receipt, err := im.server.Send(ctx, c.request)
	if err == nil {
		return outcome{accepted: len(c.lines), replayed: receipt.GetReplayed()}, nil
	}
	refusal, ok := client.Refusal(err)
	if !ok {
		return outcome{}, err
	}
	if refusal.GetRule() == ruleKeyReused {
		switch r := c.request.(type) {
		case *orderv1.PlaceOrderRequest:
			return im.complete(ctx, c, refusal, addLines(r.GetOrderId(), r.GetReference(), 0, r.GetLines(), r.GetOrderedAt()))
		case *orderv1.AddLinesRequest:
			return im.complete(ctx, c, refusal, r)
		}
	}
	return outcome{refused: refusal.GetReason()}, nil
}

// complete deals with an invoice that the limit of an earlier import had cut: under the same key
// the order got fewer lines. (Or more of them, where this import has the lower limit.) The refusal
// says how many it has; the others are added.
func (im *importer) complete(ctx context.Context, c command, refusal *eventv1.Rejection, all *orderv1.AddLinesRequest) (outcome, error) {
	have, ok := linesOf(refusal)
	known := have - int(all.GetAfterLine())
	if !ok || known < 0 {
		return outcome{refused: refusal.GetReason()}, nil
	}
	if known >= len(c.lines) {
		return outcome{accepted: len(c.lines), replayed: true}, nil
	}
	rest := addLines(all.GetOrderId(), c.lines[0].invoice, have, all.GetLines()[known:], all.GetAddedAt())
	_, err := im.server.Send(ctx, rest)
	if err == nil {
		return outcome{accepted: len(c.lines)}, nil
	}
	if refusal, ok := client.Refusal(err); ok {
		return outcome{accepted: known, refused: refusal.GetReason()}, nil
	}
	return outcome{}, err
}

// linesOf returns how many lines the order of a refused command has.
func linesOf(refusal *eventv1.Rejection) (int, bool) {
	n, err := strconv.Atoi(refusal.GetFacts()[factLines])
	return n, err == nil
}
