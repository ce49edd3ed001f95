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
	"github.com/blevesearch/bleve/v2/index/scorch"
	"github.com/blevesearch/bleve/v2/search"
	"github.com/gofrs/flock"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/streams"
)

// bleveIndex is the Index of the embedded default: bleve, in the memory of this process, and a journal on local disk
// from which it is made again at the start. bleve's own files are not used: it maps them into memory, and a file that
// is damaged while they are mapped ends the process, in goroutines of bleve's that nobody can guard.
type bleveIndex struct {
	bleve   bleve.Index
	lock    *flock.Flock
	journal *journal
	damage  string // of the journal, when it was opened

	writing sync.Mutex   // a write reads first what it replaces
	reading sync.RWMutex // of stored
	stored  content

	// segments are the SKUs of bleve's segments by their size: bleve makes one of each batch, and merges none in
	// memory.
	segments [][][]string
}

// journalName is named after the view, since an index is of one version of it.
var journalName = strings.ReplaceAll(Name, "/", "-") + ".journal"

// OpenBleve opens the index whose journal is in a folder, which belongs to this process until Close. What is lost of
// the journal, the log will fill in: its positions are gone with its products.
func OpenBleve(dir string, logger *slog.Logger) (Index, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil { //nolint:gosec // the folder is the operator's choice
		return nil, fmt.Errorf("catalog index: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("catalog index: %s is in use by another process: stop that one, or give this one another folder: %w", dir, errors.Join(err, fs.ErrExist))
	}
	x := &bleveIndex{lock: lock}
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

// removeOlder removes what older versions have left.
func removeOlder(dir string) error {
	older, err := filepath.Glob(filepath.Join(dir, "bleve*"))
	for _, path := range older {
		err = errors.Join(err, os.RemoveAll(path)) //nolint:gosec // the folder is the operator's choice
	}
	return err
}

// fillAtOnce is how many products are indexed in one batch when the index is made.
const fillAtOnce = 2000

// fill makes the index of what the journal says.
func (x *bleveIndex) fill() error {
	m, err := indexMapping()
	if err != nil {
		return fmt.Errorf("describe the index: %w", err)
	}
	if x.bleve, err = bleve.NewUsing("", m, scorch.Name, scorch.Name, nil); err != nil {
		return fmt.Errorf("make the index: %w", err)
	}
	for skus := range slices.Chunk(slices.Collect(maps.Keys(x.stored.products)), fillAtOnce) {
		if err := x.index(skus, x.stored.products); err != nil {
			return err
		}
	}
	return nil
}

// fanIn segments of about one size are made one.
const fanIn = 16

// index brings products into bleve, and keeps its segments few.
func (x *bleveIndex) index(skus []string, products map[string]*catalogv1.Product) error {
	for {
		batch := x.bleve.NewBatch()
		for _, sku := range skus {
			if err := batch.Index(sku, indexedFields(products[sku])); err != nil {
				return fmt.Errorf("index product %q: %w", sku, err)
			}
		}
		if err := x.bleve.Batch(batch); err != nil {
			return fmt.Errorf("index %d products: %w", batch.Size(), err)
		}
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
		// Indexed once more, in one batch, they leave their segments empty, and bleve drops these.
		once := map[string]bool{}
		for _, skus := range x.segments[size] {
			for _, sku := range skus {
				once[sku] = true
			}
		}
		skus, x.segments[size] = slices.Collect(maps.Keys(once)), nil
	}
}

// Load implements Index.
func (x *bleveIndex) Load(_ context.Context, skus ...string) (map[string]*catalogv1.Product, error) {
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

// Save implements Index.
func (x *bleveIndex) Save(_ context.Context, products []*catalogv1.Product) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	newer := map[string]*catalogv1.Product{}
	for _, p := range products {
		have := newer[p.Sku]
		if have == nil {
			have = x.stored.products[p.Sku] // nobody else writes now
		}
		if p.Version > have.GetVersion() || failpoint.On("view.noguard") {
			newer[p.Sku] = proto.CloneOf(p)
		}
	}
	if len(newer) == 0 {
		return nil
	}
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
	x.reading.Lock()
	maps.Copy(x.stored.products, newer)
	x.reading.Unlock()
	if err := x.index(slices.Collect(maps.Keys(newer)), x.stored.products); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return x.shorten()
}

// shorten rewrites a journal of which most is out of date. Without room for a second one it goes on with the first.
func (x *bleveIndex) shorten() error {
	if !x.journal.long() {
		return nil
	}
	if err := x.journal.rewrite(x.stored); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return nil
}

// Search implements Index.
func (x *bleveIndex) Search(ctx context.Context, q Query) (Page, error) {
	request := bleve.NewSearchRequestOptions(bleveQuery(q), q.Limit+1, 0, false)
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
	x.reading.RLock()
	defer x.reading.RUnlock()
	for i, hit := range result.Hits {
		if i == q.Limit {
			last := result.Hits[i-1]
			page.Next = &Mark{Score: last.Score, SKU: last.ID}
			break
		}
		page.Products = append(page.Products, x.stored.products[hit.ID])
	}
	return page, nil
}

// Each implements Index.
func (x *bleveIndex) Each(ctx context.Context, fn func(*catalogv1.Product) error) error {
	x.reading.RLock()
	products := slices.Collect(maps.Values(x.stored.products))
	x.reading.RUnlock()
	for _, p := range products {
		if err := fn(p); err != nil {
			return fmt.Errorf("catalog index: %w", err)
		}
	}
	return ctx.Err()
}

// Discard implements Index. What is in memory is not damaged.
func (x *bleveIndex) Discard(context.Context, *DamagedError) error { return nil }

// Damage implements Index.
func (x *bleveIndex) Damage() string { return x.damage }

// Count implements Index.
func (x *bleveIndex) Count(context.Context) (uint64, error) {
	x.reading.RLock()
	defer x.reading.RUnlock()
	return uint64(len(x.stored.products)), nil
}

// Positions implements Index.
func (x *bleveIndex) Positions(_ context.Context, topic string) (map[int32]streams.Applied, error) {
	x.reading.RLock()
	defer x.reading.RUnlock()
	positions := map[int32]streams.Applied{}
	maps.Copy(positions, x.stored.positions[topic])
	return positions, nil
}

// SavePositions implements Index.
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
	if err := x.journal.append(appendPositions(nil, topic, positions)); err != nil {
		return fmt.Errorf("catalog index: save positions: %w", err)
	}
	x.reading.Lock()
	x.stored.positions[topic] = positions
	x.reading.Unlock()
	return x.shorten()
}

// Close implements Index.
func (x *bleveIndex) Close() error {
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
