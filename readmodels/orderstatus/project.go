// Package orderstatus is the view of single orders: the status of an order, by its id or by the
// shop's own reference number.
//
// Project folds an event into an order's document. View stores the documents in Redis and is a
// streams.Sink. Queries answers OrderQueryService from it. A reference is an entry of its own in
// Redis that points to orders. It can be lost separately, so Apply writes it with every save, and
// Inspect restores missing ones.
package orderstatus

import (
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
)

// Projection is the number of Project. Raise it with every change that changes a document, so that
// `millrace status` names the views that are to be built again.
const Projection = 1

// Project implements readmodels.Project for orders. An event of an unknown type changes only the
// document's version and time, so that older processes can read newer events.
func Project(doc *orderv1.OrderStatus, e event.Event) (*orderv1.OrderStatus, error) {
	// A clone, because Project must not change the document that it receives.
	next := &orderv1.OrderStatus{OrderId: e.Stream}
	if doc != nil {
		next = proto.CloneOf(doc)
	}
	next.Version, next.RecordedAt = e.Version, timestamppb.New(e.RecordedAt)

	var message orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("read %s of order %s, version %d: %w", e.Type, e.Stream, e.Version, err)
	}
	switch m := message.Event.(type) {
	case *orderv1.OrderEvent_Placed:
		next.Stage = orderv1.OrderStage_ORDER_STAGE_PLACED
		next.CustomerId = m.Placed.CustomerId
		next.Reference = m.Placed.Reference
		next.Country = m.Placed.Country
		next.Lines = m.Placed.Lines
		next.Total = m.Placed.Total
		next.OrderedAt = m.Placed.OrderedAt
	case *orderv1.OrderEvent_LinesAdded:
		next.Lines = slices.Concat(next.Lines, m.LinesAdded.Lines)
		next.Total = m.LinesAdded.Total
	case *orderv1.OrderEvent_Confirmed:
		next.Stage = orderv1.OrderStage_ORDER_STAGE_CONFIRMED
		next.ConfirmedAt = m.Confirmed.ConfirmedAt
	case *orderv1.OrderEvent_Cancelled:
		next.Stage = orderv1.OrderStage_ORDER_STAGE_CANCELLED
		next.CancelledAt = m.Cancelled.CancelledAt
		next.CancelReason = m.Cancelled.Reason
	}
	return next, nil
}

// ExpectedDigest returns the digest of a view that has applied the events, which come in order per
// stream.
func ExpectedDigest(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	return readmodels.Expected(events, Project)
}
