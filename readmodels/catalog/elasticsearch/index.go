// Package elasticsearch is the catalogue's index of production.
//
// All requests go through an alias that is named after the view and its version, so the index behind
// it can be exchanged. Each product is a document under its SKU, written with its version as
// Elasticsearch's external version. So the older of two writes changes nothing, whichever process
// sends it.
//
// Positions are a document of the same index: what deletes or restores the products does the same to
// the positions. Elasticsearch syncs its log to disk before it answers a write, so positions are
// never ahead of products.
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
	"github.com/millrace/millrace/internal/stall"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
	"github.com/millrace/millrace/streams"
)

// Config says where the index is, and how to log in. Its user needs, on Prefix* alone, the privileges read and
// view_index_metadata to answer queries, and also write, create_index, manage (of aliases) and maintenance (to refresh)
// to feed the view.
type Config struct {
	Addresses []string // of nodes, https://HOST:PORT or http://HOST:PORT; they are asked in turn
	Username  string   // no login where empty
	Password  string
	TLS       *tls.Config  // for https; the system's authorities where nil
	Prefix    string       // of the names of index and alias, so that several systems can share a cluster; "millrace-" where empty
	Logger    *slog.Logger // slog.Default() where nil
	// Stall is how long a node may be silent until it counts as away; 0 means 30 seconds.
	Stall time.Duration
}

// Index implements catalog.Index. Any number of processes can have it open.
type Index struct {
	client *elastictransport.Client
	idle   interface{ CloseIdleConnections() }
	alias  string
	user   string
	log    *slog.Logger
}

// Open opens the index, and creates it if it does not exist and the user may do that.
func Open(ctx context.Context, cfg Config) (*Index, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("catalog index: Addresses is empty: name a node of Elasticsearch, such as https://search:9200")
	}
	urls := make([]*url.URL, len(cfg.Addresses))
	for i, address := range cfg.Addresses {
		u, err := url.Parse(address)
		if err != nil {
			u = &url.URL{} // what cannot be read may have a password in it
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return nil, fmt.Errorf("catalog index: Addresses: number %d, %q, is no http://HOST:PORT or https://HOST:PORT", i+1, u.Redacted())
		}
		urls[i] = u
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig, transport.MaxIdleConnsPerHost = cfg.TLS.Clone(), idleConnections
	transport.DialContext = stall.Dialer(&net.Dialer{Timeout: connectWithin}, cmp.Or(cfg.Stall, stallsAfter))
	transport.IdleConnTimeout = cmp.Or(cfg.Stall, stallsAfter) / 2
	options := []elastictransport.Option{
		elastictransport.WithURLs(urls...), elastictransport.WithTransport(transport), elastictransport.WithUserAgent("millrace"),
		elastictransport.WithRetryBackoff(func(attempt int) time.Duration { return time.Duration(attempt) * retryAfter }),
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
	x.alias += strings.ReplaceAll(catalog.Name, "/", "-")
	there, err := x.there(ctx)
	if err == nil && !there {
		err = x.make(ctx)
		var refused *refusedError
		if errors.As(err, &refused) && refused.status == http.StatusForbidden { // it may read, and be early
			x.log.Warn("catalog index: it is not there, and this user may not make it; whoever feeds the view will", "alias", x.alias, "error", err)
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("catalog index: %w", err), x.Close())
	}
	return x, nil
}

const (
	idleConnections = 16
	retryAfter      = 50 * time.Millisecond // and twice as long the next time
	connectWithin   = 5 * time.Second
	stallsAfter     = 30 * time.Second
)

// The fields that only this engine has; the others are those of package analysis.
const (
	fieldSKU       = "sku"
	fieldProduct   = "product" // the whole document, stored and not indexed
	fieldPositions = "positions"
)

// mappingOf is what every Elasticsearch 9 can do without plugins: texts come as finished terms (see package analysis).
func mappingOf(alias string) map[string]any {
	type m = map[string]any
	properties := m{
		fieldSKU:               m{"type": "keyword"},
		analysis.FieldListed:   m{"type": "boolean"},
		analysis.FieldCategory: m{"type": "keyword", "ignore_above": 8191}, // Lucene refuses terms of more than 32766 bytes
		fieldProduct:           m{"type": "binary"},
		fieldPositions:         m{"type": "object", "enabled": false},
	}
	for _, field := range analysis.TextFields() {
		properties[field] = m{"type": "text", "analyzer": "whitespace"}
	}
	return m{
		"aliases": m{alias: m{"is_write_index": true}},
		// One shard holds any catalogue, and scores are comparable within a shard alone. A damaged product that was
		// deleted must be indexed again under the same version, so deletes are forgotten at once.
		"settings": m{"number_of_shards": 1, "auto_expand_replicas": "0-1", "translog.durability": "request", "gc_deletes": "0s"},
		"mappings": m{"dynamic": "strict", "_meta": m{"view": catalog.Name}, "properties": properties},
	}
}

// storedProduct is what is read of the document of a product.
type storedProduct struct {
	Product []byte `json:"product"` // the whole of it, as protobuf
}

func (d storedProduct) read(id string) (*catalogv1.Product, error) {
	p := &catalogv1.Product{}
	if err := proto.Unmarshal(d.Product, p); err != nil {
		return nil, fmt.Errorf("read product %q: %w", id, err)
	}
	if p.Sku != id || p.Version == 0 {
		return nil, fmt.Errorf("read product %q: it is version %d of %q", id, p.Version, p.Sku)
	}
	return p, nil
}

// readProduct reads a product from its document.
func readProduct(id string, stored json.RawMessage) (*catalogv1.Product, error) {
	var d storedProduct
	if err := json.Unmarshal(stored, &d); err != nil {
		return nil, fmt.Errorf("read product %q: %w", id, err)
	}
	return d.read(id)
}

// make makes the index behind its alias. Who loses the race finds the winner's.
func (x *Index) make(ctx context.Context) error {
	index := x.alias + "-000001"
	err := x.ask(ctx, esapi.IndicesCreateRequest{Index: index, Body: asJSON(mappingOf(x.alias))}, nil)
	var refused *refusedError
	if errors.As(err, &refused) && refused.Type == "resource_already_exists_exception" {
		there, err := x.there(ctx)
		if err == nil && !there {
			err = fmt.Errorf("index %s is there without its alias %s: give it back with POST /_aliases, or delete the index, and the log will fill a new one", index, x.alias)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("make index %s: %w", index, err)
	}
	x.log.Info("catalog index: made a new one, which the log will fill", "index", index, "alias", x.alias)
	return nil
}

func (x *Index) there(ctx context.Context) (bool, error) {
	err := x.ask(ctx, esapi.IndicesExistsAliasRequest{Name: []string{x.alias}}, nil)
	var refused *refusedError
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// Load implements catalog.Index.
func (x *Index) Load(ctx context.Context, skus ...string) (map[string]*catalogv1.Product, error) {
	products := make(map[string]*catalogv1.Product, len(skus))
	var damaged catalog.DamagedError
	for some := range slices.Chunk(skus, loadAtOnce) {
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

const (
	loadAtOnce = 2000
	sendAtOnce = 4 << 20 // bytes
	eachAtOnce = 500
)

// Save implements catalog.Index. One refresh for all of a batch makes it findable; it is made also where nothing had to be
// written, since another writer may have written the same a moment ago, and not yet refreshed.
func (x *Index) Save(ctx context.Context, products []*catalogv1.Product) error {
	var body bytes.Buffer
	lines := json.NewEncoder(&body)
	first := 0
	for i, p := range products {
		stored, err := proto.Marshal(p)
		if err != nil {
			return fmt.Errorf("catalog index: marshal product %q: %w", p.Sku, err)
		}
		document := analysis.Document(p)
		document[fieldSKU], document[fieldProduct] = p.Sku, stored
		err = errors.Join(
			lines.Encode(map[string]any{"index": map[string]any{"_id": p.Sku, "version": p.Version, "version_type": "external"}}),
			lines.Encode(document))
		if err != nil {
			return fmt.Errorf("catalog index: save product %q: %w", p.Sku, err)
		}
		if body.Len() >= sendAtOnce || i == len(products)-1 {
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
	err := x.ask(ctx, esapi.IndicesRefreshRequest{Index: []string{x.alias}}, &answer)
	if err == nil && answer.Shards.Failed > 0 {
		err = fmt.Errorf("%d shards failed", answer.Shards.Failed)
	}
	if err != nil {
		return fmt.Errorf("catalog index: refresh: %w", err)
	}
	return nil
}

// send writes a batch, which must go to the alias: an index that is gone is not to come back by itself, without its
// mapping.
func (x *Index) send(ctx context.Context, body []byte, products []*catalogv1.Product) error {
	var answer struct {
		Errors bool
		Items  []struct {
			Index struct {
				Status int
				Error  *refusedError
			}
		}
	}
	yes := true
	err := x.ask(ctx, esapi.BulkRequest{
		Index: x.alias, Body: bytes.NewReader(body), RequireAlias: &yes,
		FilterPath: []string{"errors", "items.index.status", "items.index.error.type", "items.index.error.reason"},
	}, &answer)
	if err != nil || !answer.Errors {
		return err
	}
	var newer []string
	for i, item := range answer.Items {
		e := item.Index.Error
		switch {
		case e == nil:
		case item.Index.Status == http.StatusConflict:
			newer = append(newer, products[i].Sku) //nolint:gosec // an item answers each product
		default:
			e.status = item.Index.Status
			return fmt.Errorf("product %q: %w", products[i].Sku, e) //nolint:gosec // an item answers each product
		}
	}
	return x.present(ctx, newer)
}

// present returns an error if a product is absent. A write that conflicts has met a newer version, as a rule. But it
// also conflicts with the version of a product that was discarded, which Elasticsearch remembers for a moment. That
// write has to be sent again.
func (x *Index) present(ctx context.Context, skus []string) error {
	found, err := x.Load(ctx, skus...)
	var damaged *catalog.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	for _, sku := range skus {
		if _, ok := found[sku]; !ok && (damaged == nil || !slices.Contains(damaged.SKUs, sku)) {
			return fmt.Errorf("product %q was discarded, and its version is not forgotten yet", sku)
		}
	}
	return nil
}

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

// Search implements catalog.Index. Copies of the index score a little differently; the same search goes to the same copy, so
// that its pages fit together.
func (x *Index) Search(ctx context.Context, q catalog.Query) (catalog.Page, error) {
	sort := []any{map[string]string{fieldSKU: "asc"}}
	if q.Text != "" {
		sort = slices.Insert(sort, 0, any(map[string]string{"_score": "desc"}))
	}
	search := map[string]any{
		"query": queryOf(q), "size": q.Limit + 1, "sort": sort, "track_total_hits": true, "_source": []string{fieldProduct},
	}
	if q.After != nil {
		after := []any{q.After.SKU}
		if q.Text != "" {
			after = slices.Insert(after, 0, any(q.After.Score))
		}
		search["search_after"] = after
	}
	var answer hits
	no := false
	err := x.ask(ctx, esapi.SearchRequest{
		Index: []string{x.alias}, Body: asJSON(search), AllowPartialSearchResults: &no,
		Preference: strconv.FormatUint(xxhash.Sum64String(q.Text+"\x00"+q.Category), 36),
	}, &answer)
	if err != nil {
		return catalog.Page{}, fmt.Errorf("catalog index: search: %w", err)
	}
	page, damaged := catalog.Page{Total: answer.Hits.Total.Value}, catalog.DamagedError{}
	for i, hit := range answer.Hits.Hits {
		if i == q.Limit {
			last := answer.Hits.Hits[i-1]
			page.Next = &catalog.Mark{SKU: last.ID}
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
	if err := damaged.ErrOrNil(); err != nil {
		return catalog.Page{}, err
	}
	return page, nil
}

// isProduct tells products from positions.
var isProduct = map[string]any{"exists": map[string]string{"field": fieldSKU}}

// Each implements catalog.Index: of one state of the index.
func (x *Index) Each(ctx context.Context, fn func(*catalogv1.Product) error) (err error) {
	var state struct{ ID string }
	if err := x.ask(ctx, esapi.OpenPointInTimeRequest{Index: []string{x.alias}, KeepAlive: keepState}, &state); err != nil {
		return fmt.Errorf("catalog index: list products: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
		defer cancel()
		if e := x.ask(ctx, esapi.ClosePointInTimeRequest{Body: asJSON(map[string]string{"id": state.ID})}, nil); e != nil {
			x.log.Debug("catalog index: a listing is not closed, and will close itself", "in", keepState, "error", e)
		}
	}()
	search := map[string]any{
		"query": map[string]any{"bool": map[string]any{"filter": isProduct}}, "size": eachAtOnce, "sort": []string{"_shard_doc"},
		"track_total_hits": false, "_source": []string{fieldProduct},
	}
	no := false
	var damaged catalog.DamagedError
	for {
		search["pit"] = map[string]string{"id": state.ID, "keep_alive": fmt.Sprintf("%dms", keepState.Milliseconds())}
		var answer hits
		if err := x.ask(ctx, esapi.SearchRequest{Body: asJSON(search), AllowPartialSearchResults: &no}, &answer); err != nil {
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
		if len(hits) < eachAtOnce {
			return cmp.Or(ctx.Err(), damaged.ErrOrNil())
		}
		state.ID, search["search_after"] = answer.PIT, hits[len(hits)-1].Sort
	}
}

const (
	keepState   = time.Minute // between two pages of a listing
	closeWithin = 5 * time.Second
)

// Count implements catalog.Index.
func (x *Index) Count(ctx context.Context) (uint64, error) {
	var answer struct {
		Count  uint64
		Shards struct{ Failed int } `json:"_shards"`
	}
	err := x.ask(ctx, esapi.CountRequest{Index: []string{x.alias}, Body: asJSON(map[string]any{"query": isProduct})}, &answer)
	if err == nil && answer.Shards.Failed > 0 {
		err = fmt.Errorf("%d shards failed", answer.Shards.Failed)
	}
	if err != nil {
		return 0, fmt.Errorf("catalog index: count: %w", err)
	}
	return answer.Count, nil
}

// storedPositions is the document of a topic's positions, by partition.
type storedPositions struct {
	Positions map[int32]string `json:"positions"`
}

// No SKU begins like this.
func positionsID(topic string) string { return "@positions." + topic }

// Positions implements catalog.Index. Where the index is gone so are they.
func (x *Index) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	positions, _, err := x.positions(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("catalog index: read positions: %w", err)
	}
	return positions, nil
}

// positions also gives their document, which is nil where there is no index.
func (x *Index) positions(ctx context.Context, topic string) (map[int32]streams.Applied, *found[storedPositions], error) {
	positions := map[int32]streams.Applied{}
	docs, err := read[storedPositions](ctx, x, fieldPositions, positionsID(topic))
	if gone(err) {
		return positions, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
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

// SavePositions implements catalog.Index. What was read must still be there when it is replaced; else it is read again. The
// first positions of an index that is gone make it anew.
func (x *Index) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	yes := true
	for tried := false; ; tried = true {
		positions, doc, err := x.positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("catalog index: read positions: %w", err)
		}
		// Where an answer was lost on its way, the client has sent the request again, and the second one met the first.
		if tried && !slices.ContainsFunc(moves, func(m streams.Move) bool { return positions[m.Partition].String() != m.To.String() }) {
			return nil
		}
		if err := catalog.Advance(positions, topic, moves); err != nil {
			return err
		}
		if doc == nil {
			if err := x.make(ctx); err != nil {
				return fmt.Errorf("catalog index: %w", err)
			}
			doc = &found[storedPositions]{}
		}
		kept := storedPositions{map[int32]string{}}
		for id, at := range positions {
			kept.Positions[id] = at.String()
		}
		write := esapi.IndexRequest{Index: x.alias, DocumentID: positionsID(topic), Body: asJSON(kept), RequireAlias: &yes}
		if doc.Found {
			write.IfSeqNo, write.IfPrimaryTerm = doc.SeqNo, doc.Primary
		} else {
			write.OpType = "create"
		}
		err = x.ask(ctx, write, nil)
		var refused *refusedError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused) && refused.status == http.StatusConflict:
			continue
		default:
			return fmt.Errorf("catalog index: save positions: %w", err)
		}
	}
}

// Close implements catalog.Index.
func (x *Index) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	err := x.client.Close(ctx)
	x.idle.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("catalog index: close: %w", err)
	}
	return nil
}
