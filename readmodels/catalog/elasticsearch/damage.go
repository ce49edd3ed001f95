package elasticsearch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/readmodels/catalog"
)

// Discard implements catalog.Index. The positions are deleted last, so a reader that finds them
// missing also finds the products missing.
func (x *Index) Discard(ctx context.Context, damaged *catalog.DamagedError) error {
	var body bytes.Buffer
	lines := json.NewEncoder(&body)
	// The slice is clipped, so that append does not write to the caller's array.
	for _, id := range append(damaged.SKUs[:len(damaged.SKUs):len(damaged.SKUs)], positionsID(event.Product.Topic)) {
		if err := lines.Encode(map[string]any{"delete": map[string]any{"_id": id}}); err != nil {
			return fmt.Errorf("catalog index: discard %q: %w", id, err)
		}
	}
	// A bulk response is a success even if items in it failed. Each item has its own status.
	var answer struct {
		Items []struct {
			Delete struct {
				Status int
				Error  *responseError
			}
		}
	}
	yes := true
	// The refresh makes Elasticsearch forget the deleted versions; see mappingOf.
	err := x.do(ctx, esapi.BulkRequest{Index: x.alias, Body: &body, RequireAlias: &yes, Refresh: "true"}, &answer)
	// A document that is missing already is not an error.
	for _, item := range answer.Items {
		if e := item.Delete.Error; e != nil && err == nil {
			e.status = item.Delete.Status
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("catalog index: discard damaged documents: %w", err)
	}
	return nil
}

// Damage implements catalog.Index. Opening the index reads nothing.
func (x *Index) Damage() string { return "" }
