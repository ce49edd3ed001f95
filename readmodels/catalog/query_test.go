package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams/streamstest"
)

// serve serves a view over HTTP as a process does.
func serve(t *testing.T, v *catalog.View) catalogv1connect.CatalogQueryServiceClient {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(catalogv1connect.NewCatalogQueryServiceHandler(catalog.NewQueries(v),
		rpc.HandlerOptions(quiet, time.Now)...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return catalogv1connect.NewCatalogQueryServiceClient(server.Client(), server.URL)
}

func tokenOf(e event.Event) string {
	return event.Token{Service: "catalog", Stream: e.Stream, Version: e.Version, Position: e.Position}.String()
}

func TestGetProduct(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		v, _ := openView(t, open)
		queries := serve(t, v)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		events := []event.Event{
			l.Next("product", "A-1", indextest.Marshal(t, indextest.Listed("lamp"))),
			l.Next("product", "A-1", indextest.Marshal(t, indextest.Delisted())),
			l.Next("product", "b 2", indextest.Marshal(t, indextest.Listed("mug"))),
		}
		if err := v.Apply(t.Context(), indextest.Records(events)); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			sku, token string
			version    uint64
			code       connect.Code
		}{
			"known":                      {"b 2", "", 1, 0},
			"delisted":                   {"A-1", "", 2, 0},
			"with its token":             {"A-1", tokenOf(events[0]), 2, 0},
			"with another's token":       {"A-1", tokenOf(events[2]), 2, 0},
			"unknown":                    {"A", "", 0, connect.CodeNotFound},
			"no SKU":                     {"", "", 0, connect.CodeInvalidArgument},
			"a token that is none":       {"A-1", "rubbish", 0, connect.CodeInvalidArgument},
			"a token of another service": {"A-1", event.Token{Service: "order", Stream: "A-1", Version: 1}.String(), 0, connect.CodeInvalidArgument},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				got, err := queries.GetProduct(t.Context(),
					connect.NewRequest(&catalogv1.GetProductRequest{Sku: c.sku, Token: c.token}))
				if c.code != 0 {
					if connect.CodeOf(err) != c.code {
						t.Errorf("got %v, %v, want %v", got, err, c.code)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				p, f := got.Msg.Product, got.Msg.Freshness
				if p.Sku != c.sku || p.Version != c.version || f.View != catalog.Name || f.Version != p.Version ||
					!proto.Equal(f.AsOf, p.RecordedAt) {
					t.Errorf("got %v, freshness %v", p, f)
				}
			})
		}
	})
}

func TestSearchProductsByPages(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		v, _ := openView(t, open)
		queries := serve(t, v)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		var events []event.Event
		for i := range 45 {
			events = append(events, l.Next("product", fmt.Sprintf("S-%02d", i),
				indextest.Marshal(t, indextest.Listed("a lamp", "home"))))
		}
		events = append(events, l.Next("product", "S-07", indextest.Marshal(t, indextest.Delisted())))
		if err := v.Apply(t.Context(), indextest.Records(events)); err != nil {
			t.Fatal(err)
		}
		for _, request := range []*catalogv1.SearchProductsRequest{
			{}, {Text: "lamp"}, {Category: "home"}, {Text: "LAMPS ", Category: "home", PageSize: 7}, {PageSize: 44}, {PageSize: 100},
		} {
			var skus []string
			pages := 0
			for {
				got, err := queries.SearchProducts(t.Context(), connect.NewRequest(request))
				if err != nil {
					t.Fatal(err)
				}
				pages++
				for _, p := range got.Msg.Products {
					skus = append(skus, p.Sku)
				}
				if got.Msg.Total != 44 || got.Msg.Freshness.View != catalog.Name {
					t.Errorf("%v: total %d, freshness %v", request, got.Msg.Total, got.Msg.Freshness)
				}
				if got.Msg.NextPageToken == "" {
					break
				}
				request.PageToken = got.Msg.NextPageToken
			}
			size := int(request.PageSize)
			if size == 0 {
				size = 20
			}
			if len(skus) != 44 || !slices.IsSorted(skus) || len(slices.Compact(skus)) != 44 ||
				pages != (44+size-1)/size {
				t.Errorf("%v: %d pages of %v", request, pages, skus)
			}
		}
	})
}

func TestInvalidPageTokens(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		v, _ := openView(t, open)
		queries := serve(t, v)
		good := &catalogv1.SearchProductsRequest{Text: "lamp"}
		other := &catalogv1.SearchProductsRequest{Text: "mug"}
		for name, token := range map[string]string{
			"rubbish": "rubbish!", "short": "AAAA", "of another search": catalog.PageToken(other, &catalog.Cursor{Score: 1, SKU: "A"}), "without a SKU": catalog.PageToken(good, &catalog.Cursor{}),
		} {
			good.PageToken = token
			_, err := queries.SearchProducts(t.Context(), connect.NewRequest(good))
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "page_token") {
				t.Errorf("%s: %v", name, err)
			}
		}
		good.PageToken, good.PageSize = "", 101
		if _, err := queries.SearchProducts(t.Context(),
			connect.NewRequest(good)); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("a page too large: %v", err)
		}
	})
}

func FuzzPageToken(f *testing.F) {
	m := &catalogv1.SearchProductsRequest{Text: "lamp", Category: "home"}
	f.Add("")
	f.Add(catalog.PageToken(m, &catalog.Cursor{Score: 1.5, SKU: "A-1"}))
	f.Fuzz(func(t *testing.T, token string) {
		r := proto.CloneOf(m)
		r.PageToken = token
		cursor, ok := catalog.ParsePageToken(r)
		if !ok || cursor == nil {
			return
		}
		r.PageToken = catalog.PageToken(r, cursor)
		if again, ok := catalog.ParsePageToken(r); !ok || *again != *cursor {
			t.Fatalf("%q: %v, then %v, %v", token, cursor, again, ok)
		}
	})
}

func TestQueriesWaitForTheirToken(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		cfg := streamstest.NewBroker(t)
		l := streamstest.NewLog(t, cfg, event.Product.Topic)
		v, _ := openView(t, open)
		queries := serve(t, v)
		e := l.Next("product", "A-1", indextest.Marshal(t, indextest.Listed("lamp")))
		get := func(ctx context.Context) error {
			got, err := queries.GetProduct(ctx,
				connect.NewRequest(&catalogv1.GetProductRequest{Sku: "A-1", Token: tokenOf(e)}))
			if err == nil && got.Msg.Product.GetTitle() != "lamp" {
				return errors.New("another product")
			}
			return err
		}
		search := func(ctx context.Context) error {
			got, err := queries.SearchProducts(ctx,
				connect.NewRequest(&catalogv1.SearchProductsRequest{Text: "lamp", Token: tokenOf(e)}))
			if err == nil && (len(got.Msg.Products) != 1 || got.Msg.Freshness.AsOf == nil) {
				return fmt.Errorf("answered %v", got.Msg)
			}
			return err
		}

		// Nothing feeds the view. The typed error must arrive before the caller's deadline.
		for name, query := range map[string]func(context.Context) error{"get": get, "search": search} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			err := query(ctx)
			cancel()
			var stale *connect.Error
			if connect.CodeOf(err) != connect.CodeDeadlineExceeded || !errors.As(err, &stale) ||
				len(stale.Details()) != 1 {
				t.Fatalf("%s: %v, without the detail or too late", name, err)
			}
			if detail, err := stale.Details()[0].Value(); err != nil ||
				!proto.Equal(detail, &eventv1.Stale{View: catalog.Name, Stream: "A-1", WantVersion: 1}) {
				t.Errorf("%s: detail %v, %v", name, detail, err)
			}
		}

		answers := make(chan error, 2)
		for _, query := range []func(context.Context) error{get, search} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				answers <- query(ctx)
			}()
		}
		streamstest.Start(t, v.Runtime(cfg, nil, quiet))
		l.Write(t, e)
		for range cap(answers) {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
	})
}
