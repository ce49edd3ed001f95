package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/search"
	index "github.com/blevesearch/bleve_index_api"
	"github.com/gofrs/flock"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/streams"
)

// bleveIndex is the Index of the embedded default: bleve in this process, in a folder on local disk.
type bleveIndex struct {
	bleve bleve.Index
	lock  *flock.Flock

	writing sync.Mutex // a write reads first what it replaces
}

// bleveFolder is named after the view, since an index is of one version of it.
var bleveFolder = "bleve-" + strings.ReplaceAll(Name, "/", "-")

// OpenBleve opens the index in a folder, which belongs to this process until Close. One that cannot be opened is started
// afresh, and the log will fill it: its positions are gone with its products.
func OpenBleve(dir string, logger *slog.Logger) (Index, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil { //nolint:gosec // the folder is the operator's choice
		return nil, fmt.Errorf("catalog index: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("catalog index: %s is in use by another process: stop that one, or give this one another folder: %w", dir, errors.Join(err, fs.ErrExist))
	}
	// The folder of an older version of the view has other terms.
	if err := os.RemoveAll(filepath.Join(dir, "bleve")); err != nil { //nolint:gosec // the folder is the operator's choice
		return nil, errors.Join(fmt.Errorf("catalog index: remove an older version: %w", err), lock.Unlock())
	}
	b, err := openBleve(filepath.Join(dir, bleveFolder), logger)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("catalog index: %w", err), lock.Unlock())
	}
	return &bleveIndex{bleve: b, lock: lock}, nil
}

func openBleve(path string, logger *slog.Logger) (bleve.Index, error) {
	b, err := openExisting(path)
	if err == nil {
		return b, nil
	}
	if !errors.Is(err, bleve.ErrorIndexPathDoesNotExist) {
		logger.Warn("catalog index cannot be opened; starting a new one, which the log will fill", "path", path, "error", err)
	}
	if err := os.RemoveAll(path); err != nil { //nolint:gosec // the folder is the operator's choice
		return nil, fmt.Errorf("remove what cannot be opened: %w", err)
	}
	m, err := indexMapping()
	if err != nil {
		return nil, fmt.Errorf("describe the index: %w", err)
	}
	if b, err = bleve.New(path, m); err != nil {
		return nil, fmt.Errorf("make a new one: %w", err)
	}
	return b, nil
}

// openExisting makes an error of the panics with which damaged files are met.
func openExisting(path string) (b bleve.Index, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("damaged: %v", reason)
		}
	}()
	return bleve.Open(path)
}

// Load implements Index.
func (x *bleveIndex) Load(_ context.Context, skus ...string) (products map[string]*catalogv1.Product, err error) {
	err = x.read(func(r index.IndexReader) error {
		products, err = load(r, skus)
		return err
	})
	return products, err
}

// read gives fn one consistent state of the index.
func (x *bleveIndex) read(fn func(index.IndexReader) error) (err error) {
	advanced, err := x.bleve.Advanced()
	if err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	r, err := advanced.Reader()
	if err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	if err = errors.Join(fn(r), r.Close()); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return nil
}

func load(r index.IndexReader, skus []string) (map[string]*catalogv1.Product, error) {
	products := make(map[string]*catalogv1.Product, len(skus))
	for _, sku := range skus {
		doc, err := r.Document(sku)
		if err != nil {
			return nil, fmt.Errorf("load product %q: %w", sku, err)
		}
		if doc == nil {
			continue
		}
		if products[sku], err = readDocument(doc); err != nil {
			return nil, fmt.Errorf("load product %q: %w", sku, err)
		}
	}
	return products, nil
}

func readDocument(doc index.Document) (*catalogv1.Product, error) {
	p := &catalogv1.Product{}
	err := errors.New("nothing is stored under it")
	doc.VisitFields(func(f index.Field) {
		if f.Name() == fieldProduct {
			err = proto.Unmarshal(f.Value(), p)
		}
	})
	return p, err
}

// Save implements Index.
func (x *bleveIndex) Save(ctx context.Context, products []*catalogv1.Product) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	skus := make([]string, len(products))
	for i, p := range products {
		skus[i] = p.Sku
	}
	stored, err := x.Load(ctx, skus...)
	if err != nil {
		return err
	}
	batch := x.bleve.NewBatch()
	for _, p := range products {
		if p.Version <= stored[p.Sku].GetVersion() && !failpoint.On("view.noguard") {
			continue
		}
		stored[p.Sku] = p
		fields, err := bleveFields(p)
		if err == nil {
			err = batch.Index(p.Sku, fields)
		}
		if err != nil {
			return fmt.Errorf("catalog index: save product %q: %w", p.Sku, err)
		}
	}
	if batch.Size() == 0 {
		return nil
	}
	if err := x.bleve.Batch(batch); err != nil {
		return fmt.Errorf("catalog index: save %d products: %w", batch.Size(), err)
	}
	return nil
}

// Search implements Index.
func (x *bleveIndex) Search(ctx context.Context, q Query) (Page, error) {
	request := bleve.NewSearchRequestOptions(bleveQuery(q), q.Limit+1, 0, false)
	request.Fields = []string{fieldProduct}
	order, after := search.SortOrder{&search.SortDocID{}}, []string(nil)
	if q.After != nil {
		after = []string{q.After.SKU}
	}
	if q.Text != "" {
		order = slices.Insert(order, 0, search.SearchSort(&search.SortScore{Desc: true}))
		if q.After != nil {
			after = slices.Insert(after, 0, strconv.FormatFloat(q.After.Score, 'g', -1, 64))
		}
	}
	request.SortByCustom(order)
	if after != nil {
		request.SetSearchAfter(after)
	}
	result, err := x.bleve.SearchInContext(ctx, request)
	if err != nil {
		return Page{}, fmt.Errorf("catalog index: search: %w", err)
	}
	page := Page{Total: result.Total}
	for i, hit := range result.Hits {
		if i == q.Limit {
			last := result.Hits[i-1]
			page.Next = &Mark{Score: last.Score, SKU: last.ID}
			break
		}
		stored, ok := hit.Fields[fieldProduct].(string)
		if !ok {
			return Page{}, fmt.Errorf("catalog index: search: nothing is stored under %q", hit.ID)
		}
		p := &catalogv1.Product{}
		if err := proto.Unmarshal([]byte(stored), p); err != nil {
			return Page{}, fmt.Errorf("catalog index: search: read product %q: %w", hit.ID, err)
		}
		page.Products = append(page.Products, p)
	}
	return page, nil
}

// Each implements Index.
func (x *bleveIndex) Each(ctx context.Context, fn func(*catalogv1.Product) error) error {
	return x.read(func(r index.IndexReader) (err error) {
		ids, err := r.DocIDReaderAll()
		if err != nil {
			return fmt.Errorf("list products: %w", err)
		}
		defer func() { err = errors.Join(err, ids.Close()) }()
		for {
			id, err := ids.Next()
			if err != nil {
				return fmt.Errorf("list products: %w", err)
			}
			if id == nil {
				return ctx.Err()
			}
			sku, err := r.ExternalID(id)
			if err != nil {
				return fmt.Errorf("list products: %w", err)
			}
			products, err := load(r, []string{sku})
			if err != nil {
				return err
			}
			if err := fn(products[sku]); err != nil {
				return err
			}
		}
	})
}

// Count implements Index.
func (x *bleveIndex) Count(context.Context) (uint64, error) {
	n, err := x.bleve.DocCount()
	if err != nil {
		return 0, fmt.Errorf("catalog index: count: %w", err)
	}
	return n, nil
}

func positionsKey(topic string) []byte { return []byte("millrace positions " + topic) }

// Positions implements Index.
func (x *bleveIndex) Positions(_ context.Context, topic string) (map[int32]streams.Applied, error) {
	kept, err := x.bleve.GetInternal(positionsKey(topic))
	if err != nil {
		return nil, fmt.Errorf("catalog index: read positions: %w", err)
	}
	positions := map[int32]streams.Applied{}
	for line := range strings.Lines(string(kept)) {
		id, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		partition, err := strconv.ParseInt(id, 10, 32)
		if err == nil {
			positions[int32(partition)], err = streams.ParseApplied(value)
		}
		if err != nil {
			return nil, fmt.Errorf("catalog index: read positions: %w", err)
		}
	}
	return positions, nil
}

// SavePositions implements Index. A batch that is written later is never on disk without those before it.
func (x *bleveIndex) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	positions, err := x.Positions(ctx, topic)
	if err != nil {
		return err
	}
	if err := move(positions, topic, moves); err != nil {
		return err
	}
	var kept []byte
	for _, id := range slices.Sorted(maps.Keys(positions)) {
		kept = fmt.Appendf(kept, "%d %s\n", id, positions[id])
	}
	if err := x.bleve.SetInternal(positionsKey(topic), kept); err != nil {
		return fmt.Errorf("catalog index: save positions: %w", err)
	}
	return nil
}

// Close implements Index.
func (x *bleveIndex) Close() error {
	if err := errors.Join(x.bleve.Close(), x.lock.Unlock()); err != nil {
		return fmt.Errorf("catalog index: close: %w", err)
	}
	return nil
}
