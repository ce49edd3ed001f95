package fetch

import (
	"context"
	"fmt"
	"time"
)

// OffsetsAfter returns, for each partition of the topic, the offset of the first record whose
// timestamp is not before a time. It is the end of the partition if there is none.
func (r *Reader) OffsetsAfter(ctx context.Context, at time.Time) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.stall)
	defer cancel()
	listed, err := r.admin.ListOffsetsAfterMilli(ctx, at.UnixMilli(), r.topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("offsets of %s after %v: %w", r.topic, at, err)
	}
	offsets := map[int32]int64{}
	for p, o := range listed[r.topic] {
		offsets[p] = o.Offset
	}
	return offsets, nil
}
