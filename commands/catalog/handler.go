package catalog

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// NewHandler returns CatalogService on a store of event.Product, and the path to mount it on.
func NewHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	h := handler{commands.NewRunner(store, event.Product, Decider(), opts...)}
	return catalogv1connect.NewCatalogServiceHandler(h, commands.HandlerOptions(opts...)...)
}

// handler implements CatalogService: it maps requests to commands and states to responses.
type handler struct {
	products *commands.Runner[State, Command, *catalogv1.ProductEvent]
}

// ListProduct puts a product on sale.
func (h handler) ListProduct(
	ctx context.Context, req *connect.Request[catalogv1.ListProductRequest],
) (*connect.Response[catalogv1.ListProductResponse], error) {
	m := req.Msg
	list := List{
		SKU: m.GetSku(), Title: m.GetTitle(), Description: m.GetDescription(), Kind: m.GetKind(),
		Categories: m.GetCategories(), At: h.products.Time(m.GetListedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *catalogv1.ListProductResponse {
		return &catalogv1.ListProductResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.products.On(m.GetSku(), list), respond)
}

// ReviseProduct replaces a product's texts and categories.
func (h handler) ReviseProduct(
	ctx context.Context, req *connect.Request[catalogv1.ReviseProductRequest],
) (*connect.Response[catalogv1.ReviseProductResponse], error) {
	m := req.Msg
	revise := Revise{
		SKU: m.GetSku(), Title: m.GetTitle(), Description: m.GetDescription(), Categories: m.GetCategories(),
		At: h.products.Time(m.GetRevisedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *catalogv1.ReviseProductResponse {
		return &catalogv1.ReviseProductResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.products.On(m.GetSku(), revise), respond)
}

// SetPrice sets the price in one currency.
func (h handler) SetPrice(
	ctx context.Context, req *connect.Request[catalogv1.SetPriceRequest],
) (*connect.Response[catalogv1.SetPriceResponse], error) {
	m := req.Msg
	set := SetPrice{SKU: m.GetSku(), Price: m.GetPrice(), At: h.products.Time(m.GetValidFrom())}
	respond := func(_ State, r *eventv1.Receipt) *catalogv1.SetPriceResponse {
		return &catalogv1.SetPriceResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.products.On(m.GetSku(), set), respond)
}

// DelistProduct takes a product off sale.
func (h handler) DelistProduct(
	ctx context.Context, req *connect.Request[catalogv1.DelistProductRequest],
) (*connect.Response[catalogv1.DelistProductResponse], error) {
	m := req.Msg
	delist := Delist{SKU: m.GetSku(), At: h.products.Time(m.GetDelistedAt())}
	respond := func(_ State, r *eventv1.Receipt) *catalogv1.DelistProductResponse {
		return &catalogv1.DelistProductResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.products.On(m.GetSku(), delist), respond)
}
