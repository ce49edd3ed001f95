package online

import (
	"context"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
)

// Reader computes vectors. A Store has the facts in memory, and a Shared has them in Redis.
type Reader interface {
	// Groups returns the groups whose facts the reader has, and Topics the topics of their sources.
	Groups() []*features.Group
	Topics() []string
	// Group returns the live version of a group by the name of the group, or a version by its ID. It
	// returns nil if there is none. SetLive sets which version is live. At first, that is the lowest.
	Group(name string) *features.Group
	SetLive(g *features.Group)
	// Compile prepares a query for outputs of a group by their names. Without names, it is for all.
	Compile(group string, outputs ...string) (*Query, error)
	// Lookup computes the vectors of entities at a time and returns them in the order of the entities.
	// It reuses the memory of a previous result, which may be nil.
	Lookup(ctx context.Context, q *Query, entities []string, at time.Time, reuse []Vector) ([]Vector, error)
	// Sample returns at most n entities of the kind that a group describes, and how many there are.
	Sample(ctx context.Context, g *features.Group, n int) (sample []string, total int64, err error)
	// Positions returns the positions in a topic that the vectors of all entities have reached, by
	// partition.
	Positions(topic string) map[int32]feed.Position
	// Size returns how many entities there are, and the bytes of their facts in this process's memory.
	Size() (entities, bytes int64)
}
