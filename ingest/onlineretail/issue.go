package onlineretail

import (
	"context"
	"strconv"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// outcome is the server's answer to a command.
type outcome struct {
	accepted int    // number of the command's lines that it accepted
	refused  string // why it refused the others; empty if it accepted all
	replayed bool   // it had accepted all of them before
}

// Rules and facts in the services' refusals.
const (
	ruleKeyReused = "idempotency_key_reused"
	factLines     = "lines"
)

// issue sends a command. A refusal is an outcome. An error means that the server did not answer.
func (im *importer) issue(ctx context.Context, c command) (outcome, error) {
	receipt, err := im.server.Send(ctx, c.request)
	if err == nil {
		return outcome{accepted: len(c.lines), replayed: receipt.GetReplayed()}, nil
	}
	refusal, ok := client.Refusal(err)
	if !ok {
		return outcome{}, err
	}
	// An earlier import with another limit sent the same key with other lines.
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

// complete handles an invoice that an earlier import sent under the same key with fewer lines,
// because its limit was lower, or with more. The refusal says how many lines the order has, and
// complete adds the others. all is the request that would add every line of the command.
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

// linesOf returns how many lines the order in a refusal has.
func linesOf(refusal *eventv1.Rejection) (int, bool) {
	n, err := strconv.Atoi(refusal.GetFacts()[factLines])
	return n, err == nil
}
