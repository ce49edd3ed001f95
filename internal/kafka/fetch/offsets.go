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

// StableEnd returns the last stable offset of a partition: readers get up to it while the transactions
// that are open now remain open.
func (r *Reader) StableEnd(ctx context.Context, partition int32) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.stall)
	defer cancel()
	ends, err := r.admin.ListCommittedOffsets(ctx, r.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("last stable offset of %s: %w", r.topic, err)
	}
	end, ok := ends.Lookup(r.topic, partition)
	if !ok {
		return 0, fmt.Errorf("last stable offset of %s/%d: missing in the brokers' response", r.topic, partition)
	}
	return end.Offset, nil
}
