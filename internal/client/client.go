// Package client sends commands to a running Millrace the way an outside program would: through the Connect API, over one
// HTTP/2 connection, and patiently, because a command that carries an idempotency key may be sent again.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
)

// Client holds the four command services. It is safe for concurrent use.
type Client struct {
	Customer  customerv1connect.CustomerServiceClient
	Catalog   catalogv1connect.CatalogServiceClient
	Inventory inventoryv1connect.InventoryServiceClient
	Order     orderv1connect.OrderServiceClient

	transport *http.Transport
}

// New makes a client of the server at addr, "host:port" or a URL. Where the server is away or busy, each call is sent
// again for as long as patience before it gives up with ErrUnreachable. Call Close when done.
func New(addr string, patience time.Duration, opts ...Option) *Client {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		// A server that vanished without closing the connection is noticed by its silence.
		TLSClientConfig: o.tls,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.Protocols.SetHTTP2(true)
	doer := &http.Client{Transport: transport}
	with := connect.WithClientOptions(
		connect.WithInterceptors(retry(patience), bearer(o.token)),
		connect.WithAcceptCompression("gzip", nil, nil), // receipts are too small to gain by it
	)
	return &Client{
		Customer:  customerv1connect.NewCustomerServiceClient(doer, addr, with),
		Catalog:   catalogv1connect.NewCatalogServiceClient(doer, addr, with),
		Inventory: inventoryv1connect.NewInventoryServiceClient(doer, addr, with),
		Order:     orderv1connect.NewOrderServiceClient(doer, addr, with),
		transport: transport,
	}
}

// Option changes how a client connects.
type Option func(*options)

type options struct {
	token string
	tls   *tls.Config
}

// WithToken sends a token with each call.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTLS says whom to trust where the address is an https URL.
func WithTLS(c *tls.Config) Option { return func(o *options) { o.tls = c } }

func bearer(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if token != "" {
				req.Header().Set("Authorization", "Bearer "+token)
			}
			return next(ctx, req)
		}
	}
}

// Close closes the connections. Calls under way should have ended.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Send sends a command, which is any request of the four services that changes something, and returns its receipt.
func (c *Client) Send(ctx context.Context, command proto.Message) (*eventv1.Receipt, error) {
	switch r := command.(type) {
	case *customerv1.RegisterCustomerRequest:
		return call(ctx, c.Customer.RegisterCustomer, r)
	case *customerv1.ChangeAddressRequest:
		return call(ctx, c.Customer.ChangeAddress, r)
	case *customerv1.SetConsentRequest:
		return call(ctx, c.Customer.SetConsent, r)
	case *catalogv1.ListProductRequest:
		return call(ctx, c.Catalog.ListProduct, r)
	case *catalogv1.ReviseProductRequest:
		return call(ctx, c.Catalog.ReviseProduct, r)
	case *catalogv1.SetPriceRequest:
		return call(ctx, c.Catalog.SetPrice, r)
	case *catalogv1.DelistProductRequest:
		return call(ctx, c.Catalog.DelistProduct, r)
	case *inventoryv1.ReceiveStockRequest:
		return call(ctx, c.Inventory.ReceiveStock, r)
	case *inventoryv1.AdjustStockRequest:
		return call(ctx, c.Inventory.AdjustStock, r)
	case *inventoryv1.ReserveStockRequest:
		return call(ctx, c.Inventory.ReserveStock, r)
	case *inventoryv1.CommitReservationRequest:
		return call(ctx, c.Inventory.CommitReservation, r)
	case *inventoryv1.ReleaseReservationRequest:
		return call(ctx, c.Inventory.ReleaseReservation, r)
	case *orderv1.PlaceOrderRequest:
		return call(ctx, c.Order.PlaceOrder, r)
	case *orderv1.AddLinesRequest:
		return call(ctx, c.Order.AddLines, r)
	case *orderv1.ConfirmOrderRequest:
		return call(ctx, c.Order.ConfirmOrder, r)
	case *orderv1.CancelOrderRequest:
		return call(ctx, c.Order.CancelOrder, r)
	}
	return nil, fmt.Errorf("%T is not a command", command)
}

func call[Req, Res any, Message interface {
	*Res
	GetReceipt() *eventv1.Receipt
}](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), r *Req) (*eventv1.Receipt, error) {
	res, err := method(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	return Message(res.Msg).GetReceipt(), nil
}

// Name is what a command is called: "PlaceOrder".
func Name(command proto.Message) string {
	return strings.TrimSuffix(string(command.ProtoReflect().Descriptor().Name()), "Request")
}

// Refusal tells whether the server understood a command and will never accept it as it stands, and why: the detail that a
// business rule gives, or one made from the error where the request was not valid in the first place.
func Refusal(err error) (*eventv1.Rejection, bool) {
	var refused *connect.Error
	if !errors.As(err, &refused) || !connect.IsWireError(refused) {
		return nil, false
	}
	switch refused.Code() {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
	default:
		return nil, false
	}
	for _, detail := range refused.Details() {
		value, err := detail.Value()
		if rejection, ok := value.(*eventv1.Rejection); ok && err == nil {
			return rejection, true
		}
	}
	return &eventv1.Rejection{Reason: cmp.Or(refused.Message(), refused.Code().String())}, true
}
