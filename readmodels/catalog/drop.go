package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/elastic/go-elasticsearch/v9/esapi"
)

// DropBleve deletes the index in a folder that nobody has open; the next OpenBleve starts afresh.
func DropBleve(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, journalName)); err != nil {
		return fmt.Errorf("catalog index: %w", err)
	}
	return nil
}

// DropElasticsearch deletes the index, which the next OpenElasticsearch creates again. Nothing may write to it
// meanwhile.
func DropElasticsearch(ctx context.Context, cfg ElasticsearchConfig) (err error) {
	index, err := OpenElasticsearch(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, index.Close()) }()
	x, ok := index.(*elasticIndex)
	if !ok {
		return fmt.Errorf("catalog index: %T is not Elasticsearch's", index)
	}
	err = x.ask(ctx, esapi.IndicesDeleteRequest{Index: []string{x.alias + "-000001"}}, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("catalog index: delete it: %w", err)
	}
	return nil
}
