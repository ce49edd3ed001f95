package onlineretail

import (
	"context"
	"strconv"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// outcome is the server's response to a command. A command is accepted or refused as a whole,
// except for an order that an earlier import sent with other lines.
type outcome struct {
	accepted int    // number of the command's lines that the server accepted
	refused  string // why it refused the others; empty if it accepted all
	replayed bool   // it had accepted all of them in an earlier import
}

// Rules and facts in the services' refusals, which are part of their API.
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
	// An earlier import with another limit sent the same key with other lines. The order exists,
	// but may lack lines.
	if refusal.GetRule() == ruleKeyReused {
		switch r := c.request.(type) {
		case *orderv1.PlaceOrderRequest:
			all := addLines(r.GetOrderId(), r.GetReference(), 0, r.GetLines(), r.GetOrderedAt())
			return im.addMissingLines(ctx, c, refusal, all)
		case *orderv1.AddLinesRequest:
			return im.addMissingLines(ctx, c, refusal, r)
		}
	}
	return outcome{refused: refusal.GetReason()}, nil
}

// addMissingLines handles an invoice that an earlier import sent under the same key with fewer
// lines, because its limit was lower, or with more. The refusal contains the number of lines that
// the order has, and addMissingLines adds the others. all is the request that would add every line
// of the command.
func (im *importer) addMissingLines(
	ctx context.Context, c command, refusal *eventv1.Rejection, all *orderv1.AddLinesRequest,
) (outcome, error) {
	have, ok := lineCount(refusal)
	known := have - int(all.GetAfterLine()) // lines of the command that the order has
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

// lineCount returns how many lines the order in a refusal has.
func lineCount(refusal *eventv1.Rejection) (int, bool) {
	n, err := strconv.Atoi(refusal.GetFacts()[factLines])
	return n, err == nil
}
