package catalog_test

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
)

// All procedures, over gRPC, and the rejections of each.
func TestProductOverTheWire(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Product)
	s := commandstest.Serve(t, store, catalog.NewHandler)
	client := catalogv1connect.NewCatalogServiceClient(s.HTTP2, s.URL, connect.WithGRPC())
	ctx, at := t.Context(), timestamppb.New(monday)
	listing := &catalogv1.ListProductRequest{
		Sku: sku, Title: "LAMP", Description: "white", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS,
		Categories: []string{"lights"}, ListedAt: at,
	}
	if res, err := client.ListProduct(ctx, connect.NewRequest(listing)); err != nil ||
		res.Msg.GetReceipt().GetVersion() != 1 {
		t.Fatalf("list: %v, %v", res, err)
	}
	_, err := client.ListProduct(ctx, connect.NewRequest(listing))
	if r := commandstest.Rejection(t, err, connect.CodeAlreadyExists); r.GetRule() != "product_already_listed" {
		t.Errorf("list twice: %v", r)
	}
	if res, err := client.ReviseProduct(ctx, connect.NewRequest(&catalogv1.ReviseProductRequest{
		Sku: sku, Title: "BIG LAMP", Description: "white", Categories: []string{"gifts"}, RevisedAt: at,
	})); err != nil || res.Msg.GetReceipt().GetVersion() != 2 {
		t.Fatalf("revise: %v, %v", res, err)
	}
	if res, err := client.SetPrice(ctx, connect.NewRequest(&catalogv1.SetPriceRequest{
		Sku: sku, Price: gbp(2, 550_000_000), ValidFrom: at,
	})); err != nil || res.Msg.GetReceipt().GetVersion() != 3 {
		t.Fatalf("set price: %v, %v", res, err)
	}
	if res, err := client.DelistProduct(ctx, connect.NewRequest(&catalogv1.DelistProductRequest{
		Sku: sku, DelistedAt: at,
	})); err != nil || res.Msg.GetReceipt().GetVersion() != 4 {
		t.Fatalf("delist: %v, %v", res, err)
	}
	_, err = client.SetPrice(ctx, connect.NewRequest(&catalogv1.SetPriceRequest{Sku: sku, Price: gbp(2, 0)}))
	if r := commandstest.Rejection(t, err, connect.CodeFailedPrecondition); r.GetRule() != "product_delisted" {
		t.Errorf("a price off sale: %v", r)
	}
	_, err = client.SetPrice(ctx, connect.NewRequest(&catalogv1.SetPriceRequest{Sku: "85123a", Price: gbp(2, 0)}))
	if r := commandstest.Rejection(t, err, connect.CodeNotFound); r.GetRule() != "product_unknown" {
		t.Errorf("a SKU in other letters is another product: %v", r)
	}
	_, err = client.SetPrice(ctx, connect.NewRequest(&catalogv1.SetPriceRequest{Sku: "-"}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "sku: ") ||
		!strings.Contains(err.Error(), "price: ") {
		t.Errorf("neither SKU nor price: %v", err)
	}

	var types []string
	for _, e := range commandstest.Events(t, store) {
		types = append(types, strings.TrimPrefix(e.Type, "millrace.catalog.v1."))
		if e.Stream != sku || !e.OccurredAt.Equal(monday) {
			t.Errorf("%s of %q at %v", e.Type, e.Stream, e.OccurredAt)
		}
	}
	if want := []string{"ProductListed", "ProductRevised", "PriceSet", "ProductDelisted"}; !slices.Equal(types, want) {
		t.Errorf("happened %v, want %v", types, want)
	}
}
