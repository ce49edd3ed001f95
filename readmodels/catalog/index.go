package catalog

import (
	"context"
	"errors"
	"fmt"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/streams"
)

// Index is what the view needs of a search engine. What Save and SavePositions have written survives the death of the
// process, positions never without the products that were saved before them. All methods are safe for concurrent use.
type Index interface {
	// Load reads products by SKU; one that is not there is left out. Load, Search and Each return a *DamagedError if
	// stored products cannot be read; Load and Each have read the others.
	Load(ctx context.Context, skus ...string) (map[string]*catalogv1.Product, error)

	// Save writes products, each only where its version is higher than the stored one. When it returns, Load and Search
	// find them.
	Save(ctx context.Context, products []*catalogv1.Product) error

	// Search finds products that are not delisted, best match first, those that match alike by SKU.
	Search(ctx context.Context, q Query) (Page, error)

	// Each calls fn once with every product, in no order.
	Each(ctx context.Context, fn func(*catalogv1.Product) error) error

	// Discard removes damaged products, and all positions with them, so that the log is read again. Its
	// error is ErrReadOnly if the user may not.
	Discard(ctx context.Context, damaged *DamagedError) error

	// Damage says what was damaged when the index was opened; empty if nothing was.
	Damage() string

	// Count counts the products.
	Count(ctx context.Context) (uint64, error)

	// Positions and SavePositions are those of streams.Sink. If stored positions cannot be read, Positions returns a
	// *DamagedError.
	Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error)
	SavePositions(ctx context.Context, topic string, moves []streams.Move) error

	// Close ends the use of the index.
	Close() error
}

// ErrReadOnly is the error of an Index whose user may not write.
var ErrReadOnly = errors.New("the user may only read the index")

// Query says what to find. A product matches where every word of Text is in its title or description, in any
// inflection; the last word may also be the beginning of a word, or misspelt. Every implementation finds the same
// products: package analysis decides what a word is and which words are the same, and not the engine.
type Query struct {
	Text     string // empty matches everything
	Category string // exactly; empty matches everything
	Limit    int    // most products of the page; at least 1
	After    *Mark  // continue behind; nil for the first page
}

// Mark is a place in the result of a query.
type Mark struct {
	Score float64
	SKU   string
}

// Page is a part of a query's result.
type Page struct {
	Products []*catalogv1.Product
	Total    uint64 // of matches, on all pages
	Next     *Mark  // nil on the last page
}

// Advance makes all moves in positions, or returns an error for one that does not start where the
// sink is. It is for implementations of Index.
func Advance(positions map[int32]streams.Applied, topic string, moves []streams.Move) error {
	for _, m := range moves {
		if at, there := positions[m.Partition]; there == m.First || there && at.Next != m.From.Next {
			return fmt.Errorf("catalog index: position of partition %d of %s: %w", m.Partition, topic, streams.ErrLost)
		}
		positions[m.Partition] = m.To
	}
	return nil
}

// DamagedError says that products, or positions, cannot be read from an index.
type DamagedError struct {
	SKUs []string // empty if the positions are damaged
	Err  error    // what is wrong with the first
}

func (e *DamagedError) Error() string {
	if len(e.SKUs) == 0 {
		return fmt.Sprintf("catalog index: positions are damaged: %v", e.Err)
	}
	return fmt.Sprintf("catalog index: %d products are damaged, the first is %q: %v", len(e.SKUs), e.SKUs[0], e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Is makes damage a kind of streams.ErrLost.
func (e *DamagedError) Is(target error) bool { return target == streams.ErrLost }

// mostDamaged bounds the SKUs of one error; the next look finds the rest.
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
