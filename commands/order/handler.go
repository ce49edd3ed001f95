package order

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
)

// NewHandler returns OrderService on a store of event.Order, and the path to mount it on.
func NewHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	h := handler{commands.NewRunner(store, event.Order, Decider(), opts...)}
	return orderv1connect.NewOrderServiceHandler(h, commands.HandlerOptions(opts...)...)
}

// handler implements OrderService: it maps requests to commands and states to responses.
type handler struct {
	orders *commands.Runner[State, Command, *orderv1.OrderEvent]
}

// PlaceOrder opens an order, under the id of the request or a new one.
func (h handler) PlaceOrder(
	ctx context.Context, req *connect.Request[orderv1.PlaceOrderRequest],
) (*connect.Response[orderv1.PlaceOrderResponse], error) {
	m, id := req.Msg, commands.ID(req.Msg.GetOrderId())
	place := Place{
		OrderID: id, CustomerID: m.CustomerId, Reference: m.GetReference(),
		Currency: m.GetCurrency(), Country: m.GetCountry(), Lines: m.GetLines(), At: h.orders.Time(m.GetOrderedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *orderv1.PlaceOrderResponse {
		return &orderv1.PlaceOrderResponse{OrderId: id, Receipt: r}
	}
	return commands.Do(ctx, req, h.orders.On(id, place), respond)
}

// AddLines appends lines to a placed order.
func (h handler) AddLines(
	ctx context.Context, req *connect.Request[orderv1.AddLinesRequest],
) (*connect.Response[orderv1.AddLinesResponse], error) {
	m, id := req.Msg, commands.ID(req.Msg.GetOrderId())
	add := AddLines{OrderID: id, AfterLine: m.GetAfterLine(), Lines: m.GetLines(), At: h.orders.Time(m.GetAddedAt())}
	respond := func(_ State, r *eventv1.Receipt) *orderv1.AddLinesResponse {
		return &orderv1.AddLinesResponse{OrderId: id, Receipt: r}
	}
	return commands.Do(ctx, req, h.orders.On(id, add), respond)
}

// ConfirmOrder accepts an order.
func (h handler) ConfirmOrder(
	ctx context.Context, req *connect.Request[orderv1.ConfirmOrderRequest],
) (*connect.Response[orderv1.ConfirmOrderResponse], error) {
	id := commands.ID(req.Msg.GetOrderId())
	confirm := Confirm{OrderID: id, At: h.orders.Time(req.Msg.GetConfirmedAt())}
	respond := func(_ State, r *eventv1.Receipt) *orderv1.ConfirmOrderResponse {
		return &orderv1.ConfirmOrderResponse{OrderId: id, Receipt: r}
	}
	return commands.Do(ctx, req, h.orders.On(id, confirm), respond)
}

// CancelOrder ends an order.
func (h handler) CancelOrder(
	ctx context.Context, req *connect.Request[orderv1.CancelOrderRequest],
) (*connect.Response[orderv1.CancelOrderResponse], error) {
	id := commands.ID(req.Msg.GetOrderId())
	cancel := Cancel{OrderID: id, Reason: req.Msg.GetReason(), At: h.orders.Time(req.Msg.GetCancelledAt())}
	respond := func(_ State, r *eventv1.Receipt) *orderv1.CancelOrderResponse {
		return &orderv1.CancelOrderResponse{OrderId: id, Receipt: r}
	}
	return commands.Do(ctx, req, h.orders.On(id, cancel), respond)
}
