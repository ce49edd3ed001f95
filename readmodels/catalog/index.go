package catalog

import (
	"context"
	"errors"
	"fmt"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/streams"
)

// Index is the search engine as the view needs it. What Save and SavePositions have written
// survives a crash of the process, and positions never without the products that were saved before
// them. All methods are safe for concurrent use.
type Index interface {
	// Load returns products by SKU, without those that do not exist. Load, Search and Each return a
	// *DamagedError if stored products cannot be read. Load and Each then still return the other
	// products.
	Load(ctx context.Context, skus ...string) (map[string]*catalogv1.Product, error)

	// Save writes products, each only if its version is higher than the stored one. When it
	// returns, Load and Search find them.
	Save(ctx context.Context, products []*catalogv1.Product) error

	// Search returns products that are not delisted: the best match first, and equal matches in
	// order of SKU.
	Search(ctx context.Context, q Query) (Page, error)

	// Each calls fn once for every product, in no particular order.
	Each(ctx context.Context, fn func(*catalogv1.Product) error) error

	// Discard removes damaged products, and all positions with them, so that the log is read again.
	// It returns ErrReadOnly if the user may not do that.
	Discard(ctx context.Context, damaged *DamagedError) error

	// Damage describes what was damaged when the index was opened. It is empty if nothing was.
	Damage() string

	// Count returns the number of products.
	Count(ctx context.Context) (uint64, error)

	// Positions and SavePositions implement streams.Sink. If stored positions cannot be read,
	// Positions returns a *DamagedError.
	Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error)
	SavePositions(ctx context.Context, topic string, moves []streams.Move) error

	// Close releases the index.
	Close() error
}

// ErrReadOnly is the error of an Index whose user may only read.
var ErrReadOnly = errors.New("the user may only read the index")

// Query is a search. A product matches if every word of Text is in its title or description, in any
// inflection. The last word may also be the beginning of a word, or misspelt. Every implementation
// finds the same products, because package analysis, not the engine, decides what a word is and
// which words are equal.
type Query struct {
	Text     string  // matches everything if empty
	Category string  // compared exactly; matches everything if empty
	Limit    int     // maximum number of products on the page; at least 1
	After    *Cursor // the last product of the previous page; nil for the first page
}

// Cursor is a position in the result of a query: the last product that was returned.
type Cursor struct {
	Score float64
	SKU   string
}

// Page is a part of a query's result.
type Page struct {
	Products []*catalogv1.Product
	Total    uint64  // number of matches on all pages
	Next     *Cursor // nil on the last page
}

// Advance applies moves to positions. It returns an error that wraps streams.ErrLost if a move does
// not start where the position is. Implementations of Index use it.
func Advance(positions map[int32]streams.Applied, topic string, moves []streams.Move) error {
	for _, m := range moves {
		if at, there := positions[m.Partition]; there == m.First || there && at.Next != m.From.Next {
			return fmt.Errorf("catalog index: position of partition %d of %s: %w", m.Partition, topic, streams.ErrLost)
		}
		positions[m.Partition] = m.To
	}
	return nil
}

// DamagedError reports that products, or the positions, cannot be read from an index.
type DamagedError struct {
	SKUs []string // empty if the positions are damaged
	Err  error    // the error of the first
}

func (e *DamagedError) Error() string {
	if len(e.SKUs) == 0 {
		return fmt.Sprintf("catalog index: positions are damaged: %v", e.Err)
	}
	return fmt.Sprintf("catalog index: %d products are damaged, the first is %q: %v", len(e.SKUs), e.SKUs[0], e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Is makes damage match streams.ErrLost, so that the runtime rebuilds the view.
func (e *DamagedError) Is(target error) bool { return target == streams.ErrLost }

// mostDamaged bounds the SKUs in one error. The next read finds the rest.
const mostDamaged = 1000

// Add adds a damaged product.
func (e *DamagedError) Add(sku string, err error) {
	if e.Err == nil {
		e.Err = err
	}
	if len(e.SKUs) < mostDamaged {
		e.SKUs = append(e.SKUs, sku)
	}
}

// ErrOrNil returns e, or nil if nothing was added.
func (e *DamagedError) ErrOrNil() error {
	if e.Err == nil {
		return nil
	}
	return e
}
