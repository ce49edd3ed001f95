package served

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/internal/kafka"
)

// Sample is what Read found.
type Sample struct {
	Vectors []Vector
	// Unreadable is how many records are not served vectors, and FirstUnreadable describes one.
	Unreadable      int
	FirstUnreadable string
}

// Read returns the newest vectors of the topic, at most limit of them, the oldest first. A topic
// that does not exist has none.
func Read(ctx context.Context, cfg kafka.Config, limit int) (Sample, error) {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return Sample{}, err
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, Topic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return Sample{}, nil
	}
	if err != nil {
		return Sample{}, err
	}
	from := map[int32]int64{}
	for p, end := range ends { // the newest ones may all be in one partition
		from[p] = max(0, end-int64(limit))
	}
	s := Sample{}
	err = kafka.ReadAll(ctx, cfg, Topic, from, ends, func(m kafka.Message) error {
		if m.End {
			return nil
		}
		v, err := decode(m.Value)
		if err != nil {
			if s.Unreadable++; s.FirstUnreadable == "" {
				s.FirstUnreadable = fmt.Sprintf("%s/%d@%d: %s", Topic, m.Partition, m.Offset, err)
			}
			return nil
		}
		s.Vectors = append(s.Vectors, Vector{m.Partition, m.Offset, v})
		if len(s.Vectors) >= 2*limit {
			s.trim(limit)
		}
		return nil
	})
	s.trim(limit)
	return s, err
}

// trim keeps the newest vectors.
func (s *Sample) trim(limit int) {
	slices.SortStableFunc(s.Vectors, func(a, b Vector) int {
		return cmp.Or(a.GetServedAt().AsTime().Compare(b.GetServedAt().AsTime()), cmp.Compare(a.Partition, b.Partition),
			cmp.Compare(a.Offset, b.Offset))
	})
	if n := len(s.Vectors); n > limit {
		s.Vectors = slices.Delete(s.Vectors, 0, n-limit)
	}
}
