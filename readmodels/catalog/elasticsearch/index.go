// Package elasticsearch is the implementation of catalog.Index for production, on a cluster of
// Elasticsearch 9.
//
// All requests use an alias that is named after the view and its version, so the index behind it
// can be exchanged. Each product is a document with its SKU as the id, and its version as
// Elasticsearch's external version. So the older of two writes changes nothing, whichever process
// sends it.
//
// Positions are a document in the same index: whatever deletes or restores the products does the
// same to the positions. Elasticsearch syncs its log to disk before it answers a write, so
// positions are never ahead of products. Settings reports an index that was configured differently.
//
// Config names the cluster, and Open returns an Index, which creates what is missing. The other
// files are the translation of queries (query.go), the requests and their errors (responses.go),
// removal of damaged documents (damage.go), and the check of the index (settings.go). Every error
// that means that the index is missing matches streams.ErrLost, so the runtime rebuilds the view.
package elasticsearch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/elastic/go-elasticsearch/v9/esapi"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/stall"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
	"github.com/millrace/millrace/streams"
)

// Config is the location of the index and the credentials. To answer queries, the user needs the
// privileges read and view_index_metadata on Prefix*. To feed the view, it also needs write,
// create_index, manage (for aliases) and maintenance (to refresh).
type Config struct {
	// URLs of nodes, https://HOST:PORT or http://HOST:PORT. Requests use them in turn.
	Addresses []string
	Username  string // no login if empty
	Password  string
	TLS       *tls.Config // for https; nil means the system's authorities
	// Prefixes the names of index and alias, so that several systems can share a cluster. Empty
	// means "millrace-".
	Prefix string
	// Sink is the name of the version that the index has: "catalog/v2@2". It is catalog.Name if it is
	// empty.
	Sink   string
	Logger *slog.Logger // nil means slog.Default()
	// Stall is how long a node may be silent until it counts as unavailable; 0 means 30 seconds.
	Stall time.Duration
	// Dependency guards the requests. Nil guards nothing.
	Dependency *dependency.Dependency
}

// Index implements catalog.Index. Any number of processes can open it. It has no state besides its
// connections, so the content is never out of date.
type Index struct {
	client *elastictransport.Client
	idle   interface{ CloseIdleConnections() } // the client's transport
	alias  string                              // the name that all requests use
	user   string                              // for error messages
	log    *slog.Logger
}

// Open opens the index, and returns an error if the cluster does not answer. It creates the index
// if it does not exist and the user may create it.
func Open(ctx context.Context, cfg Config) (*Index, error) {
	if len(cfg.Addresses) == 0 {
		return nil,
			errors.New("catalog index: Addresses is empty: name a node of Elasticsearch, such as https://search:9200")
	}
	urls := make([]*url.URL, len(cfg.Addresses))
	for i, address := range cfg.Addresses {
		u, err := url.Parse(address)
		if err != nil {
			u = &url.URL{} // an unparsable URL may contain a password, so do not print it
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return nil,
				fmt.Errorf("catalog index: Addresses: number %d, %q, is not http://HOST:PORT or https://HOST:PORT", i+1,
					u.Redacted())
		}
		urls[i] = u
	}
	// A transport of its own, so that Close does not affect other clients of the process.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig, transport.MaxIdleConnsPerHost = cfg.TLS.Clone(), idleConnections
	transport.DialContext = stall.Dialer(&net.Dialer{Timeout: connectTimeout}, cmp.Or(cfg.Stall, stallTimeout))
	// An idle connection must end before stall considers it silent.
	transport.IdleConnTimeout = cmp.Or(cfg.Stall, stallTimeout) / 2
	options := []elastictransport.Option{
		elastictransport.WithURLs(urls...), elastictransport.WithTransport(cfg.Dependency.Transport(transport, false)),
		elastictransport.WithUserAgent("millrace"),
		elastictransport.WithRetryBackoff(func(attempt int) time.Duration { return time.Duration(attempt) * retryDelay }),
	}
	if cfg.Username != "" {
		options = append(options, elastictransport.WithBasicAuth(cfg.Username, cfg.Password))
	}
	client, err := elastictransport.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("catalog index: %w", err)
	}
	x := &Index{client: client, idle: transport, user: cfg.Username, log: cfg.Logger}
	if x.log == nil {
		x.log = slog.Default()
	}
	x.alias = cfg.Prefix
	if x.alias == "" {
		x.alias = "millrace-"
	}
	x.alias += strings.ReplaceAll(cmp.Or(cfg.Sink, catalog.Name), "/", "-")
	// This also checks address, certificate and password.
	exists, err := x.exists(ctx)
	if err == nil && !exists {
		err = x.create(ctx)
		var refused *responseError
		// This user may only read. The process that feeds the view creates the index later.
		if errors.As(err, &refused) && refused.status == http.StatusForbidden {
			x.log.Warn("catalog index does not exist and this user may not create it; the process that feeds the view will", "alias", x.alias, "error", err)
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("catalog index: %w", err), x.Close())
	}
	return x, nil
}

// Bounds of the connections to the nodes.
const (
	idleConnections = 16
	retryDelay      = 50 * time.Millisecond // the delay grows by this with each attempt
	connectTimeout  = 5 * time.Second
	stallTimeout    = 30 * time.Second
)

// Fields of this engine only. The others are those of package analysis.
const (
	fieldSKU       = "sku"
	fieldProduct   = "product" // the whole document, stored but not indexed
	fieldPositions = "positions"
)

// mappingOf returns the settings and the mapping of the index. It needs no plugins, because texts
// are finished terms (see package analysis). A document with a field that is not in the mapping is
// rejected ("dynamic": "strict"), because a guessed mapping could not be changed later.
func mappingOf(alias string) map[string]any {
	type m = map[string]any
	properties := m{
		fieldSKU:             m{"type": "keyword"},
		analysis.FieldListed: m{"type": "boolean"},
		// Lucene rejects terms of more than 32766 bytes, and a character has up to 4.
		analysis.FieldCategory: m{"type": "keyword", "ignore_above": 8191},
		fieldProduct:           m{"type": "binary"},
		fieldPositions:         m{"type": "object", "enabled": false},
	}
	for _, field := range analysis.TextFields() {
		properties[field] = m{"type": "text", "analyzer": "whitespace"}
	}
	return m{
		"aliases": m{alias: m{"is_write_index": true}},
		// One shard holds any catalogue, and scores are comparable only within a shard. A damaged
		// product that was deleted must be indexed again under the same version, so deletes are
		// forgotten at once.
		"settings": m{"number_of_shards": 1, "auto_expand_replicas": "0-1", "translog.durability": "request",
			"gc_deletes": "0s"},
		"mappings": m{"dynamic": "strict", "_meta": m{"view": catalog.Name}, "properties": properties},
	}
}

// storedProduct is the part of a product's document that is read. The rest is for searching only,
// so no query depends on how Elasticsearch returns it.
type storedProduct struct {
	Product []byte `json:"product"` // the whole product, as protobuf
}

// read decodes the product. It also checks that it is the right one, because the document may be
// damaged.
func (d storedProduct) read(id string) (*catalogv1.Product, error) {
	p := &catalogv1.Product{}
	if err := proto.Unmarshal(d.Product, p); err != nil {
		return nil, fmt.Errorf("read product %q: %w", id, err)
	}
	// A product that was saved has a version of at least 1.
	if p.Sku != id || p.Version == 0 {
		return nil, fmt.Errorf("read product %q: it is version %d of %q", id, p.Version, p.Sku)
	}
	return p, nil
}

// readProduct reads a product from its document in a response to a search.
func readProduct(id string, stored json.RawMessage) (*catalogv1.Product, error) {
	var d storedProduct
	if err := json.Unmarshal(stored, &d); err != nil {
		return nil, fmt.Errorf("read product %q: %w", id, err)
	}
	return d.read(id)
}

// create creates the index and its alias. If another process has created it first, that one is
// used.
func (x *Index) create(ctx context.Context) error {
	// The number leaves room for a successor behind the same alias.
	index := x.alias + "-000001"
	// The alias is created in the same request, so no process sees this index without it.
	err := x.do(ctx, esapi.IndicesCreateRequest{Index: index, Body: jsonBody(mappingOf(x.alias))}, nil)
	var refused *responseError
	if errors.As(err, &refused) && refused.Type == "resource_already_exists_exception" {
		exists, err := x.exists(ctx)
		if err == nil && !exists {
			err = fmt.Errorf("index %s exists without its alias %s: add the alias with POST /_aliases, or delete the index to rebuild it from the log", index, x.alias)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("create index %s: %w", index, err)
	}
	x.log.Info("catalog index created; it is filled from the log", "index", index, "alias", x.alias)
	return nil
}

// exists reports whether the alias exists.
func (x *Index) exists(ctx context.Context) (bool, error) {
	err := x.do(ctx, esapi.IndicesExistsAliasRequest{Name: []string{x.alias}}, nil)
	var refused *responseError
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// Load implements catalog.Index. It reads by id, so it also finds what is not refreshed yet.
func (x *Index) Load(ctx context.Context, skus ...string) (map[string]*catalogv1.Product, error) {
	products := make(map[string]*catalogv1.Product, len(skus))
	// Damaged products are collected, and the readable ones returned as well.
	var damaged catalog.DamagedError
	for some := range slices.Chunk(skus, loadBatch) {
		docs, err := read[storedProduct](ctx, x, fieldProduct, some...)
		if err != nil {
			return nil, fmt.Errorf("catalog index: load %d products: %w", len(some), err)
		}
		for _, d := range docs {
			if !d.Found {
				continue
			}
			p, err := d.Source.read(d.ID)
			if err = cmp.Or(d.Bad, err); err != nil {
				damaged.Add(d.ID, err)
				continue
			}
			products[d.ID] = p
		}
	}
	return products, damaged.ErrOrNil()
}

// Sizes of requests. Elasticsearch rejects bodies of more than 100 MB by default.
const (
	loadBatch = 2000
	bulkBytes = 4 << 20 // bytes per bulk request
	pageSize  = 500
)

// Save implements catalog.Index. One refresh per call makes the products findable. It happens even
// if nothing was written: another writer may just have written the same without having refreshed it
// yet.
func (x *Index) Save(ctx context.Context, products []*catalogv1.Product) error {
	var body bytes.Buffer
	// The format of bulk requests: a line with the action, then a line with the document.
	lines := json.NewEncoder(&body)
	// The products from first on are in body, and not sent yet.
	first := 0
	for i, p := range products {
		stored, err := proto.Marshal(p)
		if err != nil {
			return fmt.Errorf("catalog index: marshal product %q: %w", p.Sku, err)
		}
		document := analysis.Document(p)
		// The terms are for searching, and the whole product is for reading.
		document[fieldSKU], document[fieldProduct] = p.Sku, stored
		err = errors.Join(
			lines.Encode(map[string]any{"index": map[string]any{"_id": p.Sku, "version": p.Version,
				"version_type": "external"}}),
			lines.Encode(document))
		if err != nil {
			return fmt.Errorf("catalog index: save product %q: %w", p.Sku, err)
		}
		// Send in parts, because Elasticsearch limits the size of a request.
		if body.Len() >= bulkBytes || i == len(products)-1 {
			if err := x.send(ctx, body.Bytes(), products[first:i+1]); err != nil {
				return fmt.Errorf("catalog index: save %d products: %w", len(products), err)
			}
			body.Reset()
			first = i + 1
		}
	}
	var answer struct {
		Shards struct{ Failed int } `json:"_shards"`
	}
	err := x.do(ctx, esapi.IndicesRefreshRequest{Index: []string{x.alias}}, &answer)
	// A refresh that failed on a shard is a success by its status, but leaves products unfindable.
	if err == nil && answer.Shards.Failed > 0 {
		err = fmt.Errorf("%d shards failed", answer.Shards.Failed)
	}
	if err != nil {
		return fmt.Errorf("catalog index: refresh: %w", err)
	}
	return nil
}

// send writes a batch. RequireAlias prevents Elasticsearch from creating a deleted index
// automatically, without its mapping. The response has an item for each product, in the same order.
func (x *Index) send(ctx context.Context, body []byte, products []*catalogv1.Product) error {
	var answer struct {
		Errors bool
		Items  []struct {
			Index struct {
				Status int
				Error  *responseError
			}
		}
	}
	yes := true
	err := x.do(ctx, esapi.BulkRequest{
		Index: x.alias, Body: bytes.NewReader(body), RequireAlias: &yes,
		FilterPath: []string{"errors", "items.index.status", "items.index.error.type", "items.index.error.reason"},
	}, &answer)
	// Without Errors, every item has succeeded.
	if err != nil || !answer.Errors {
		return err
	}
	var newer []string // conflicts, which present looks at
	for i, item := range answer.Items {
		e := item.Index.Error
		switch {
		case e == nil:
		// A conflict means that a newer version is stored, as a rule; see present.
		case item.Index.Status == http.StatusConflict:
			newer = append(newer, products[i].Sku) //nolint:gosec // an item answers each product
		default:
			e.status = item.Index.Status
			return fmt.Errorf("product %q: %w", products[i].Sku, e) //nolint:gosec // an item answers each product
		}
	}
	return x.present(ctx, newer)
}

// present returns an error if a product does not exist. Usually a write conflicts because a newer
// version is stored. But it also conflicts with the version of a discarded product, which
// Elasticsearch remembers for a moment. Such a write must be sent again.
func (x *Index) present(ctx context.Context, skus []string) error {
	// A damaged product counts as present: the next read reports it.
	found, err := x.Load(ctx, skus...)
	var damaged *catalog.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	// The error makes the runtime deliver the batch again.
	for _, sku := range skus {
		if _, ok := found[sku]; !ok && (damaged == nil || !slices.Contains(damaged.SKUs, sku)) {
			return fmt.Errorf("product %q was discarded, but Elasticsearch still remembers its version", sku)
		}
	}
	return nil
}

// hits is a response to a search. Sort has the values that search_after of the next page needs. PIT
// is the id of the point in time, which may change with each page.
type hits struct {
	PIT  string `json:"pit_id"`
	Hits struct {
		Total struct{ Value uint64 }
		Hits  []struct {
			ID     string            `json:"_id"`
			Stored json.RawMessage   `json:"_source"`
			Sort   []json.RawMessage `json:"sort"`
		}
	}
}

// Search implements catalog.Index. The copies of a shard score slightly differently. So the same
// search always goes to the same copy, to make its pages consistent.
func (x *Index) Search(ctx context.Context, q catalog.Query) (catalog.Page, error) {
	// The best match first, then by SKU. Without a text, every score is the same, so the SKU is
	// enough. The cursor has the same values.
	sort := []any{map[string]string{fieldSKU: "asc"}}
	if q.Text != "" {
		sort = slices.Insert(sort, 0, any(map[string]string{"_score": "desc"}))
	}
	// The size is one more than the page, to know whether there is a next page.
	search := map[string]any{
		"query": queryOf(q), "size": q.Limit + 1, "sort": sort, "track_total_hits": true,
		"_source": []string{fieldProduct},
	}
	if q.After != nil {
		after := []any{q.After.SKU}
		if q.Text != "" {
			after = slices.Insert(after, 0, any(q.After.Score))
		}
		search["search_after"] = after
	}
	var answer hits
	// A search that a shard did not answer would miss products, so it must be an error.
	no := false
	err := x.do(ctx, esapi.SearchRequest{
		Index: []string{x.alias}, Body: jsonBody(search), AllowPartialSearchResults: &no,
		Preference: strconv.FormatUint(xxhash.Sum64String(q.Text+"\x00"+q.Category), 36),
	}, &answer)
	if err != nil {
		return catalog.Page{}, fmt.Errorf("catalog index: search: %w", err)
	}
	page, damaged := catalog.Page{Total: answer.Hits.Total.Value}, catalog.DamagedError{}
	for i, hit := range answer.Hits.Hits {
		// The extra hit exists: there is a next page, which begins after the last hit of this one.
		if i == q.Limit {
			last := answer.Hits.Hits[i-1]
			page.Next = &catalog.Cursor{SKU: last.ID}
			if q.Text != "" {
				if err := json.Unmarshal(last.Sort[0], &page.Next.Score); err != nil {
					return catalog.Page{}, fmt.Errorf("catalog index: search: score of %q: %w", last.ID, err)
				}
			}
			break
		}
		p, err := readProduct(hit.ID, hit.Stored)
		if err != nil {
			damaged.Add(hit.ID, err)
			continue
		}
		page.Products = append(page.Products, p)
	}
	// A page without the damaged products would look complete.
	if err := damaged.ErrOrNil(); err != nil {
		return catalog.Page{}, err
	}
	return page, nil
}

// isProduct matches products, but not the document of positions.
var isProduct = map[string]any{"exists": map[string]string{"field": fieldSKU}}

// Each implements catalog.Index. It reads from a point in time, so it sees one state of the index.
func (x *Index) Each(ctx context.Context, fn func(*catalogv1.Product) error) (err error) {
	var state struct{ ID string }
	open := esapi.OpenPointInTimeRequest{Index: []string{x.alias}, KeepAlive: keepAlive}
	if err := x.do(ctx, open, &state); err != nil {
		return fmt.Errorf("catalog index: list products: %w", err)
	}
	// Close the point in time even if ctx is done: it keeps deleted segments on disk.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		end := esapi.ClosePointInTimeRequest{Body: jsonBody(map[string]string{"id": state.ID})}
		if e := x.do(ctx, end, nil); e != nil {
			x.log.Debug("catalog index: cannot close a point in time; it expires", "in", keepAlive, "error", e)
		}
	}()
	search := map[string]any{
		"query": map[string]any{"bool": map[string]any{"filter": isProduct}}, "size": pageSize,
		// The order on disk is the cheapest one, and Each promises none.
		"sort":             []string{"_shard_doc"},
		"track_total_hits": false, "_source": []string{fieldProduct},
	}
	no := false
	var damaged catalog.DamagedError
	// Page by page, each after the last hit of the previous one.
	for {
		search["pit"] = map[string]string{"id": state.ID, "keep_alive": fmt.Sprintf("%dms", keepAlive.Milliseconds())}
		var answer hits
		request := esapi.SearchRequest{Body: jsonBody(search), AllowPartialSearchResults: &no}
		if err := x.do(ctx, request, &answer); err != nil {
			return fmt.Errorf("catalog index: list products: %w", err)
		}
		hits := answer.Hits.Hits
		for _, hit := range hits {
			p, err := readProduct(hit.ID, hit.Stored)
			if err != nil {
				damaged.Add(hit.ID, err)
				continue
			}
			if err := fn(p); err != nil {
				return fmt.Errorf("catalog index: %w", err)
			}
		}
		if len(hits) < pageSize {
			return cmp.Or(ctx.Err(), damaged.ErrOrNil())
		}
		// A page may return a new id of the point in time. The next page needs the newest.
		state.ID, search["search_after"] = answer.PIT, hits[len(hits)-1].Sort
	}
}

const (
	keepAlive    = time.Minute // how long the point in time lives between two pages
	closeTimeout = 5 * time.Second
)

// Count implements catalog.Index.
func (x *Index) Count(ctx context.Context) (uint64, error) {
	// A failed shard would make the count too low.
	var answer struct {
		Count  uint64
		Shards struct{ Failed int } `json:"_shards"`
	}
	// Without the condition, the document of positions would be counted as well.
	err := x.do(ctx, esapi.CountRequest{Index: []string{x.alias},
		Body: jsonBody(map[string]any{"query": isProduct})}, &answer)
	if err == nil && answer.Shards.Failed > 0 {
		err = fmt.Errorf("%d shards failed", answer.Shards.Failed)
	}
	if err != nil {
		return 0, fmt.Errorf("catalog index: count: %w", err)
	}
	return answer.Count, nil
}

// storedPositions is the document with the positions of a topic, by partition.
type storedPositions struct {
	Positions map[int32]string `json:"positions"`
}

// positionsID returns the id of a topic's positions. No SKU begins with @. So the id is never that
// of a product.
func positionsID(topic string) string { return "@positions." + topic }

// Positions implements catalog.Index. If the index does not exist, there are none.
func (x *Index) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	positions, _, err := x.positions(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("catalog index: read positions: %w", err)
	}
	return positions, nil
}

// positions also returns the document, which is nil if the index does not exist.
func (x *Index) positions(
	ctx context.Context, topic string,
) (map[int32]streams.Applied, *found[storedPositions], error) {
	positions := map[int32]streams.Applied{}
	docs, err := read[storedPositions](ctx, x, fieldPositions, positionsID(topic))
	if gone(err) {
		return positions, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	// One id was asked for. A missing document is one that is not found.
	if len(docs) != 1 {
		return nil, nil, fmt.Errorf("%d documents under one id", len(docs))
	}
	if err := docs[0].Bad; err != nil {
		return nil, nil, &catalog.DamagedError{Err: err}
	}
	for id, value := range docs[0].Source.Positions {
		if positions[id], err = streams.ParseApplied(value); err != nil {
			return nil, nil, &catalog.DamagedError{Err: err}
		}
	}
	return positions, &docs[0], nil
}

// SavePositions implements catalog.Index. It replaces the document only if it is still the one that
// was read, and else starts again. The first positions create a missing index.
func (x *Index) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	yes := true
	for tried := false; ; tried = true {
		positions, doc, err := x.positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("catalog index: read positions: %w", err)
		}
		// A lost response makes the client repeat the request, and the repetition conflicts with
		// the first one. If the positions are already what they should be, that has happened.
		if tried && !slices.ContainsFunc(moves,
			func(m streams.Move) bool { return positions[m.Partition].String() != m.To.String() }) {
			return nil
		}
		if err := catalog.Advance(positions, topic, moves); err != nil {
			return err
		}
		if doc == nil {
			if err := x.create(ctx); err != nil {
				return fmt.Errorf("catalog index: %w", err)
			}
			doc = &found[storedPositions]{}
		}
		kept := storedPositions{map[int32]string{}} // all positions of the topic, moved or not
		for id, at := range positions {
			kept.Positions[id] = at.String()
		}
		// The condition is the document's sequence number, or that it does not exist.
		write := esapi.IndexRequest{Index: x.alias, DocumentID: positionsID(topic), Body: jsonBody(kept),
			RequireAlias: &yes}
		if doc.Found {
			write.IfSeqNo, write.IfPrimaryTerm = doc.SeqNo, doc.Primary
		} else {
			write.OpType = "create"
		}
		err = x.do(ctx, write, nil)
		var refused *responseError
		switch {
		case err == nil:
			return nil
		// Another process has saved positions since they were read, or this was a repetition.
		case errors.As(err, &refused) && refused.status == http.StatusConflict:
			continue
		default:
			return fmt.Errorf("catalog index: save positions: %w", err)
		}
	}
}

// Close implements catalog.Index. The content is on disk already, so there is nothing to write.
func (x *Index) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	// The client ends its goroutines. The transport keeps connections, which are closed separately.
	err := x.client.Close(ctx)
	x.idle.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("catalog index: close: %w", err)
	}
	return nil
}
