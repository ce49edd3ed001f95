package readmodels

import (
	"context"

	"google.golang.org/protobuf/proto"
)

// Contents is a view whose documents can be compared with those of another version of it.
type Contents interface {
	// Items calls fn once for every document. For one that changes meanwhile, it may be either.
	Items(ctx context.Context, fn func(key string, item Item) error) error
	// Item returns documents by key, without those that do not exist.
	Item(ctx context.Context, keys []string) (map[string]Item, error)
}

// Item is a document in a comparison.
type Item struct {
	Version uint64 // orders the states of one document
	Content proto.Message
	Private bool // its fields may be personal, so a comparison does not show their values
}
