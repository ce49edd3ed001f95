package catalog

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"net/http"

	"connectrpc.com/connect"
	"github.com/cespare/xxhash/v2"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

const (
	defaultPageSize = 20
	maxPageSize     = 100
)

// Queries implements CatalogQueryService on a view.
type Queries struct{ view *View }

// NewQueries returns the handler of CatalogQueryService. It relies on requests having been
// validated.
func NewQueries(view *View) *Queries { return &Queries{view} }

var _ catalogv1connect.CatalogQueryServiceHandler = (*Queries)(nil)

// Handler returns the path to mount CatalogQueryService on, and the handler that serves it from the
// view.
func (v *View) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	return catalogv1connect.NewCatalogQueryServiceHandler(NewQueries(v), opts...)
}

// GetProduct returns one product, even if it is delisted.
func (q *Queries) GetProduct(
	ctx context.Context, req *connect.Request[catalogv1.GetProductRequest],
) (*connect.Response[catalogv1.GetProductResponse], error) {
	version := func(ctx context.Context, sku string) (uint64, error) {
		products, err := q.view.load(ctx, sku)
		return products[sku].GetVersion(), err
	}
	if err := q.view.fresh.AwaitVersion(ctx, req.Msg, req.Msg.Token, version); err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	products, err := q.view.load(ctx, req.Msg.Sku)
	if err != nil {
		return nil, q.view.fresh.Rebuilding(err)
	}
	p := products[req.Msg.Sku]
	// The product may be among those that were lost.
	if p == nil && q.view.Faults().Any() {
		return nil, q.view.fresh.Rebuilding(streams.ErrLost)
	}
	if p == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such product"))
	}
	return connect.NewResponse(&catalogv1.GetProductResponse{Product: p,
		Freshness: q.view.fresh.Of(p.Version, p.RecordedAt)}), nil
}

// SearchProducts returns one page of the products that match.
func (q *Queries) SearchProducts(
	ctx context.Context, req *connect.Request[catalogv1.SearchProductsRequest],
) (*connect.Response[catalogv1.SearchProductsResponse], error) {
	m := req.Msg
	after, ok := parsePageToken(m)
	if !ok {
		return nil, readmodels.InvalidField(m, "page_token", "not the next_page_token of a page of this search")
	}
	if err := q.view.fresh.AwaitPosition(ctx, m, m.Token); err != nil {
		return nil, err
	}
	size := int(m.PageSize)
	if size == 0 {
		size = defaultPageSize
	}
	page, err := q.view.index.Search(ctx, Query{Text: m.Text, Category: m.Category, Limit: min(size, maxPageSize),
		After: after})
	if err != nil {
		return nil, q.view.fresh.Rebuilding(q.view.lost(ctx, err))
	}
	answer := &catalogv1.SearchProductsResponse{
		Products: page.Products, Total: page.Total, Freshness: q.view.fresh.Of(0, q.view.fresh.AsOf()),
	}
	if page.Next != nil {
		answer.NextPageToken = pageToken(m, page.Next)
	}
	return connect.NewResponse(answer), nil
}

// A page token consists of a hash of the search and a Cursor. The hash rejects a token of another
// search, in which the cursor would point anywhere.

// pageToken encodes a page token: eight bytes of hash, eight bytes of score, and the SKU.
func pageToken(m *catalogv1.SearchProductsRequest, cursor *Cursor) string {
	b := binary.BigEndian.AppendUint64(nil, searchHash(m))
	b = binary.BigEndian.AppendUint64(b, math.Float64bits(cursor.Score))
	return base64.RawURLEncoding.EncodeToString(append(b, cursor.SKU...))
}

// parsePageToken decodes a page token. ok is false if it is malformed or belongs to another search.
// The cursor is nil for the first page.
func parsePageToken(m *catalogv1.SearchProductsRequest) (cursor *Cursor, ok bool) {
	if m.PageToken == "" {
		return nil, true
	}
	b, err := base64.RawURLEncoding.DecodeString(m.PageToken)
	if err != nil || len(b) <= 16 || binary.BigEndian.Uint64(b) != searchHash(m) {
		return nil, false
	}
	score := math.Float64frombits(binary.BigEndian.Uint64(b[8:]))
	if math.IsNaN(score) || math.IsInf(score, 0) {
		return nil, false
	}
	return &Cursor{Score: score, SKU: string(b[16:])}, true
}

// searchHash returns a hash of what determines the result of a search. The page size does not.
func searchHash(m *catalogv1.SearchProductsRequest) uint64 {
	return xxhash.Sum64String(m.Text + "\x00" + m.Category)
}
