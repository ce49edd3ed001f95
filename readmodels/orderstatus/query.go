package orderstatus

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/streams"
)

// Queries implements OrderQueryService on a view.
type Queries struct{ view *View }

// NewQueries returns the handler of OrderQueryService. It relies on requests having been validated.
func NewQueries(view *View) *Queries { return &Queries{view} }

var _ orderv1connect.OrderQueryServiceHandler = (*Queries)(nil)

// Handler returns the path to mount OrderQueryService on, and the handler that serves it from the
// view.
func (v *View) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	return orderv1connect.NewOrderQueryServiceHandler(NewQueries(v), opts...)
}

// GetOrder returns one order. With a token, it first waits until the view shows the token's order
// at the token's version. That may be another order than the requested one.
func (q *Queries) GetOrder(
	ctx context.Context, req *connect.Request[orderv1.GetOrderRequest],
) (*connect.Response[orderv1.GetOrderResponse], error) {
	if err := q.view.fresh.AwaitVersion(ctx, req.Msg, req.Msg.Token, q.view.version); err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	doc, err := q.view.find(ctx, req.Msg)
	if err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	// The order may be among those that were lost.
	if doc == nil && q.view.Faults().Any() {
		return nil, q.view.fresh.Rebuilding(streams.ErrLost)
	}
	if doc == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such order"))
	}
	return connect.NewResponse(&orderv1.GetOrderResponse{Order: doc,
		Freshness: q.view.fresh.Of(doc.Version, doc.RecordedAt)}), nil
}

// Shown returns the version that the view shows of an order, or 0 if it does not show it.
func (v *View) Shown(ctx context.Context, _ event.Aggregate, order string) (uint64, error) {
	return v.version(ctx, order)
}

// version returns the version of an order in the view, or 0 if it is not there.
func (v *View) version(ctx context.Context, order string) (uint64, error) {
	// The stored version suffices; the document need not be decoded.
	docs, err := v.docs.Load(ctx, order)
	return docs[order].Version, v.lost(ctx, err)
}

// find returns the requested order, or nil if it does not exist. A shop may give two orders the
// same reference. Then find returns the one that was placed last.
//
// A reference is an entry of its own, which can be damaged, so the document decides.
func (v *View) find(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.OrderStatus, error) {
	// A request has either an id or a reference.
	ids := []string{req.GetOrderId()}
	reference, byReference := req.Key.(*orderv1.GetOrderRequest_Reference)
	if byReference {
		var err error
		if ids, err = v.docs.Lookup(ctx, reference.Reference); err != nil {
			return nil, v.lost(ctx, err)
		}
	}
	docs, err := v.load(ctx, ids...)
	if err != nil {
		return nil, err
	}
	var found *orderv1.OrderStatus
	// Usually there is one document. Several share a reference.
	for _, doc := range docs {
		if byReference && doc.Reference != reference.Reference {
			continue // the reference is stale or damaged
		}
		if found == nil || later(doc, found) {
			found = doc
		}
	}
	return found, nil
}

// later reports whether order a was placed after b. The id decides between equal times, so the
// answer is stable.
func later(a, b *orderv1.OrderStatus) bool {
	if x, y := a.OrderedAt.AsTime(), b.OrderedAt.AsTime(); !x.Equal(y) {
		return x.After(y)
	}
	return a.OrderId > b.OrderId
}
