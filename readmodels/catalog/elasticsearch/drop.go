package elasticsearch

import (
	"context"
	"errors"
	"fmt"

	"github.com/elastic/go-elasticsearch/v9/esapi"
)

// Drop deletes the index. The next Open creates it again. No process may write to it at the same
// time.
func Drop(ctx context.Context, cfg Config) (err error) {
	// Opening checks the configuration. A missing index is created and then deleted.
	x, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	err = x.do(ctx, esapi.IndicesDeleteRequest{Index: []string{x.alias + "-000001"}}, nil)
	// The index may be gone already, if another process has dropped it.
	if err != nil && !gone(err) {
		return fmt.Errorf("catalog index: delete it: %w", err)
	}
	return nil
}
