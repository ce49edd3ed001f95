package orderstatus

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/streams"
)

// Queries answers from a view.
type Queries struct{ view *View }

// NewQueries makes the handler of OrderQueryService. It relies on requests having been validated.
func NewQueries(view *View) *Queries { return &Queries{view} }

var _ orderv1connect.OrderQueryServiceHandler = (*Queries)(nil)

// Handler serves OrderQueryService from the view: the path to mount it on, and the handler.
func (v *View) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	return orderv1connect.NewOrderQueryServiceHandler(NewQueries(v), opts...)
}

// GetOrder shows one order. A token makes the answer wait until the view shows the order that the token names as the
// token names it, which may be another order than the one that is asked for.
func (q *Queries) GetOrder(ctx context.Context, req *connect.Request[orderv1.GetOrderRequest]) (*connect.Response[orderv1.GetOrderResponse], error) {
	if err := q.view.fresh.AwaitVersion(ctx, req.Msg, req.Msg.Token, q.view.version); err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	doc, err := q.view.find(ctx, req.Msg)
	if err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	if doc == nil && q.view.Faults().Any() { // it may be among what was lost
		return nil, q.view.fresh.Rebuilding(streams.ErrLost)
	}
	if doc == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such order"))
	}
	return connect.NewResponse(&orderv1.GetOrderResponse{Order: doc, Freshness: q.view.fresh.Of(doc.Version, doc.RecordedAt)}), nil
}

// version is what the view shows of an order, 0 where it shows nothing.
func (v *View) version(ctx context.Context, order string) (uint64, error) {
	docs, err := v.docs.Load(ctx, order)
	return docs[order].Version, v.lost(ctx, err)
}

// find loads the order that is asked for; nil where there is none. Nothing keeps a shop from giving two orders one
// number: then it is the order placed last.
func (v *View) find(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.OrderStatus, error) {
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
	for _, doc := range docs {
		if byReference && doc.Reference != reference.Reference {
			continue // what leads here is not the view's
		}
		if found == nil || later(doc, found) {
			found = doc
		}
	}
	return found, nil
}

func later(a, b *orderv1.OrderStatus) bool {
	if x, y := a.OrderedAt.AsTime(), b.OrderedAt.AsTime(); !x.Equal(y) {
		return x.After(y)
	}
	return a.OrderId > b.OrderId
}
