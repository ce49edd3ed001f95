package inventory

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
)

// defaultTimeToLive is the time to live of reservations whose request has none.
const defaultTimeToLive = 15 * time.Minute

// NewHandler returns InventoryService on a store of event.Stock, and the path to mount it on.
func NewHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	h := handler{commands.NewRunner(store, event.Stock, Decider(), opts...)}
	return inventoryv1connect.NewInventoryServiceHandler(h, commands.HandlerOptions(opts...)...)
}

// handler implements InventoryService: it maps requests to commands and states to responses.
type handler struct {
	stock *commands.Runner[State, Command, *inventoryv1.StockEvent]
}

// on returns a command's stock and time. The time is that of the service's clock, whatever the
// business time of the request: a client must not expire reservations of others.
func (h handler) on(sku string) On { return On{SKU: sku, Now: h.stock.Time(nil)} }

// ReceiveStock adds arrived goods.
func (h handler) ReceiveStock(
	ctx context.Context, req *connect.Request[inventoryv1.ReceiveStockRequest],
) (*connect.Response[inventoryv1.ReceiveStockResponse], error) {
	m := req.Msg
	receive := Receive{
		On: h.on(m.GetSku()), Quantity: m.GetQuantity(), Reference: m.GetReference(),
		At: h.stock.Time(m.GetReceivedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *inventoryv1.ReceiveStockResponse {
		return &inventoryv1.ReceiveStockResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.stock.On(m.GetSku(), receive), respond)
}

// AdjustStock corrects the quantity on hand.
func (h handler) AdjustStock(
	ctx context.Context, req *connect.Request[inventoryv1.AdjustStockRequest],
) (*connect.Response[inventoryv1.AdjustStockResponse], error) {
	m := req.Msg
	adjust := Adjust{
		On: h.on(m.GetSku()), Delta: m.GetDelta(), Reason: m.GetReason(), At: h.stock.Time(m.GetAdjustedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *inventoryv1.AdjustStockResponse {
		return &inventoryv1.AdjustStockResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.stock.On(m.GetSku(), adjust), respond)
}

// ReserveStock sets goods aside for a time. The answer contains its end. A repeated request
// returns the end of the existing reservation.
func (h handler) ReserveStock(
	ctx context.Context, req *connect.Request[inventoryv1.ReserveStockRequest],
) (*connect.Response[inventoryv1.ReserveStockResponse], error) {
	m := req.Msg
	reserve := Reserve{
		On: h.on(m.GetSku()), ReservationID: m.GetReservationId(), Quantity: m.GetQuantity(),
		TimeToLive: defaultTimeToLive,
	}
	if m.GetTimeToLive() != nil {
		reserve.TimeToLive = m.GetTimeToLive().AsDuration()
	}
	respond := func(s State, r *eventv1.Receipt) *inventoryv1.ReserveStockResponse {
		expires := s.Reservations[m.GetReservationId()].ExpiresAt
		return &inventoryv1.ReserveStockResponse{ExpiresAt: timestamppb.New(expires), Receipt: r}
	}
	return commands.Do(ctx, req, h.stock.On(m.GetSku(), reserve), respond)
}

// CommitReservation takes reserved goods out of stock.
func (h handler) CommitReservation(
	ctx context.Context, req *connect.Request[inventoryv1.CommitReservationRequest],
) (*connect.Response[inventoryv1.CommitReservationResponse], error) {
	m := req.Msg
	commit := Commit{On: h.on(m.GetSku()), ReservationID: m.GetReservationId()}
	respond := func(_ State, r *eventv1.Receipt) *inventoryv1.CommitReservationResponse {
		return &inventoryv1.CommitReservationResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.stock.On(m.GetSku(), commit), respond)
}

// ReleaseReservation returns reserved goods to the available stock.
func (h handler) ReleaseReservation(
	ctx context.Context, req *connect.Request[inventoryv1.ReleaseReservationRequest],
) (*connect.Response[inventoryv1.ReleaseReservationResponse], error) {
	m := req.Msg
	release := Release{On: h.on(m.GetSku()), ReservationID: m.GetReservationId()}
	respond := func(_ State, r *eventv1.Receipt) *inventoryv1.ReleaseReservationResponse {
		return &inventoryv1.ReleaseReservationResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.stock.On(m.GetSku(), release), respond)
}

// GetStock reads the SKU's stream, not a view, so the answer is current.
func (h handler) GetStock(
	ctx context.Context, req *connect.Request[inventoryv1.GetStockRequest],
) (*connect.Response[inventoryv1.GetStockResponse], error) {
	on := h.on(req.Msg.GetSku())
	s, version, err := h.stock.Load(ctx, on.SKU)
	if err != nil {
		return nil, err
	}
	if version == 0 {
		return nil, &commands.RejectedError{Code: commands.NotFound, Rule: "stock_unknown", Field: "sku",
			Reason: "this SKU has never had stock"}
	}
	// Count expired reservations as available, as the next command will.
	s = s.after(s.expirations(on))
	return connect.NewResponse(&inventoryv1.GetStockResponse{
		OnHand: s.OnHand, Reserved: s.Reserved, Available: s.Available(), Version: version,
	}), nil
}
