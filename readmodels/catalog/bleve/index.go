// Package bleve is the embedded implementation of catalog.Index. It runs bleve in the memory of
// this process.
//
// A journal on local disk contains what was saved. Open builds the index from it, and does not read
// the journal again. bleve's own files are not used: it maps them into memory, and a file that is
// damaged while it is mapped crashes the process in one of bleve's goroutines, which cannot be
// guarded.
//
// Entries of the journal have checksums, and positions are never ahead of products. So after
// damage, the index is in some earlier state, and the log supplies the rest.
package bleve

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
	"github.com/blevesearch/bleve/v2/index/scorch"
	"github.com/blevesearch/bleve/v2/search"
	"github.com/gofrs/flock"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
	"github.com/millrace/millrace/streams"
)

// Index implements catalog.Index. Only one process at a time can open it. A write changes, in this
// order, the journal, the products in memory, and bleve.
type Index struct {
	bleve   bleve.Index
	lock    *flock.Flock
	journal *journal
	damage  string // of the journal when it was opened

	writing sync.Mutex   // serialises writes, which compare with what they replace
	reading sync.RWMutex // guards stored
	stored  content

	// segments are the SKUs in each of bleve's segments, by size class. bleve creates one segment
	// per batch, and in memory it never merges them.
	segments [][][]string
}

// journalName contains the view's version, because a journal has the documents of one version.
var journalName = strings.ReplaceAll(catalog.Name, "/", "-") + ".journal"

// Open opens the index whose journal is in a folder. The folder belongs to this process until
// Close. Products that a damaged journal has lost are read from the log again, because the
// positions after them are lost too.
func Open(dir string, logger *slog.Logger) (*Index, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("catalog index: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("catalog index: %s is in use by another process: stop it, or use another folder: %w",
			dir, errors.Join(err, fs.ErrExist))
	}
	x := &Index{lock: lock}
	// From here on, Close releases the lock and what is open.
	err := removeOlder(dir)
	if err == nil {
		x.journal, x.stored, x.damage, err = openJournal(filepath.Join(dir, journalName), logger)
	}
	if err == nil {
		err = x.fill()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("catalog index: %w", err), x.Close())
	}
	return x, nil
}

// removeOlder removes the files of older versions.
func removeOlder(dir string) error {
	// Older versions stored bleve's own files here.
	older, err := filepath.Glob(filepath.Join(dir, "bleve*"))
	for _, path := range older {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// fillBatch is the number of products per batch when the index is built.
const fillBatch = 2000

// fill builds the index from the content of the journal.
func (x *Index) fill() error {
	m, err := indexMapping()
	if err != nil {
		return fmt.Errorf("build the index mapping: %w", err)
	}
	if x.bleve, err = bleve.NewUsing("", m, scorch.Name, scorch.Name, nil); err != nil {
		return fmt.Errorf("create the index: %w", err)
	}
	for skus := range slices.Chunk(slices.Collect(maps.Keys(x.stored.products)), fillBatch) {
		if err := x.index(skus, x.stored.products); err != nil {
			return err
		}
	}
	return nil
}

// fanIn is the number of segments of one size class that are merged into one.
const fanIn = 16

// index adds products to bleve, and keeps the number of segments small: logarithmic in the number
// of products, instead of one for each batch.
//
// This is the scheme of a log-structured merge tree: when a size class is full, its segments become
// one of the next class. So a product is indexed again about once for each class.
func (x *Index) index(skus []string, products map[string]*catalogv1.Product) error {
	for {
		batch := x.bleve.NewBatch()
		for _, sku := range skus {
			if err := batch.Index(sku, analysis.Document(products[sku])); err != nil {
				return fmt.Errorf("index product %q: %w", sku, err)
			}
		}
		if err := x.bleve.Batch(batch); err != nil {
			return fmt.Errorf("index %d products: %w", batch.Size(), err)
		}
		// The size class is the logarithm of the segment's size.
		size := 0
		for n := len(skus); n >= fanIn; n /= fanIn {
			size++
		}
		for len(x.segments) <= size {
			x.segments = append(x.segments, nil)
		}
		x.segments[size] = append(x.segments[size], skus)
		if len(x.segments[size]) < fanIn {
			return nil
		}
		// Merge by indexing the products of all these segments again, in one batch. That leaves the
		// old segments empty, and bleve drops them.
		once := map[string]bool{}
		for _, skus := range x.segments[size] {
			for _, sku := range skus {
				once[sku] = true
			}
		}
		skus, x.segments[size] = slices.Collect(maps.Keys(once)), nil
	}
}

// Load implements catalog.Index.
func (x *Index) Load(_ context.Context, skus ...string) (map[string]*catalogv1.Product, error) {
	x.reading.RLock()
	defer x.reading.RUnlock()
	products := make(map[string]*catalogv1.Product, len(skus))
	for _, sku := range skus {
		if p := x.stored.products[sku]; p != nil {
			products[sku] = p
		}
	}
	return products, nil
}

// Save implements catalog.Index.
func (x *Index) Save(_ context.Context, products []*catalogv1.Product) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	newer := map[string]*catalogv1.Product{}
	for _, p := range products {
		// A batch may have several versions of a product. The highest one is saved.
		have := newer[p.Sku]
		if have == nil {
			// No lock for reading: only writers change it, and this is the only one.
			have = x.stored.products[p.Sku]
		}
		if p.Version > have.GetVersion() || failpoint.On("view.noguard") {
			newer[p.Sku] = proto.CloneOf(p)
		}
	}
	if len(newer) == 0 {
		return nil
	}
	// The journal first: a failed write must not leave a product in memory that is not on disk.
	var entries []byte
	var err error
	for _, p := range newer {
		if entries, err = appendProduct(entries, p); err != nil {
			return fmt.Errorf("catalog index: %w", err)
		}
	}
	if err := x.journal.append(entries); err != nil {
		return fmt.Errorf("catalog index: save %d products: %w", len(newer), err)
	}
	// Load finds the products from here on, and Search after they are indexed below.
	x.reading.Lock()
	maps.Copy(x.stored.products, newer)
	x.reading.Unlock()
	if err := x.index(slices.Collect(maps.Keys(newer)), x.stored.products); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return x.compact()
}

// compact rewrites a journal of which most is out of date. If that fails, the old journal remains
// in use.
func (x *Index) compact() error {
	if !x.journal.oversized() {
		return nil
	}
	if err := x.journal.rewrite(x.stored); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return nil
}

// Search implements catalog.Index.
func (x *Index) Search(ctx context.Context, q catalog.Query) (catalog.Page, error) {
	// One more than the page, to know whether there is a next page.
	request := bleve.NewSearchRequestOptions(queryOf(q), q.Limit+1, 0, false)
	// Without a text, all products match equally, so the SKU alone is the order.
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
	// bleve returns ids only. The products are those in memory.
	result, err := x.bleve.SearchInContext(ctx, request)
	if err != nil {
		return catalog.Page{}, fmt.Errorf("catalog index: search: %w", err)
	}
	page := catalog.Page{Total: result.Total}
	x.reading.RLock()
	defer x.reading.RUnlock()
	for i, hit := range result.Hits {
		// There is one more than the page, so there is a next page.
		if i == q.Limit {
			last := result.Hits[i-1]
			page.Next = &catalog.Cursor{Score: last.Score, SKU: last.ID}
			break
		}
		// Every hit is stored: products are stored before they are indexed, and never removed.
		page.Products = append(page.Products, x.stored.products[hit.ID])
	}
	return page, nil
}

// Each implements catalog.Index.
func (x *Index) Each(ctx context.Context, fn func(*catalogv1.Product) error) error {
	x.reading.RLock()
	// Copy the references, so that fn runs without the lock. Stored products are never changed in
	// place.
	products := slices.Collect(maps.Values(x.stored.products))
	x.reading.RUnlock()
	for _, p := range products {
		if err := fn(p); err != nil {
			return fmt.Errorf("catalog index: %w", err)
		}
	}
	return ctx.Err()
}

// Discard implements catalog.Index. It does nothing, because what is in memory is not damaged.
func (x *Index) Discard(context.Context, *catalog.DamagedError) error { return nil }

// Damage implements catalog.Index.
func (x *Index) Damage() string { return x.damage }

// Count implements catalog.Index.
func (x *Index) Count(context.Context) (uint64, error) {
	x.reading.RLock()
	defer x.reading.RUnlock()
	return uint64(len(x.stored.products)), nil
}

// Positions implements catalog.Index.
func (x *Index) Positions(_ context.Context, topic string) (map[int32]streams.Applied, error) {
	x.reading.RLock()
	defer x.reading.RUnlock()
	// A copy, because SavePositions changes its result.
	positions := map[int32]streams.Applied{}
	maps.Copy(positions, x.stored.positions[topic])
	return positions, nil
}

// SavePositions implements catalog.Index.
func (x *Index) SavePositions(ctx context.Context, topic string, moves []streams.Move) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	positions, err := x.Positions(ctx, topic)
	if err != nil {
		return err
	}
	if err := catalog.Advance(positions, topic, moves); err != nil {
		return err
	}
	// The products before these positions are in the journal already, so positions are never ahead
	// of them.
	if err := x.journal.append(appendPositions(nil, topic, positions)); err != nil {
		return fmt.Errorf("catalog index: save positions: %w", err)
	}
	x.reading.Lock()
	x.stored.positions[topic] = positions
	x.reading.Unlock()
	return x.compact()
}

// Close implements catalog.Index. The lock is released last, when no file is in use any more.
func (x *Index) Close() error {
	var errs []error
	if x.bleve != nil {
		errs = append(errs, x.bleve.Close())
	}
	if x.journal != nil {
		errs = append(errs, x.journal.close())
	}
	if err := errors.Join(append(errs, x.lock.Unlock())...); err != nil {
		return fmt.Errorf("catalog index: close: %w", err)
	}
	return nil
}

// Drop deletes the index in a folder that no process has open. The next Open starts empty.
func Drop(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, journalName)); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return nil
}
