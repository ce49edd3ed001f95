package fetch

import (
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// pool recycles the memory of fetched records and of decompressed batches. A record takes about 250
// bytes, which the garbage collector would otherwise have to reclaim.
type pool struct {
	mu      sync.Mutex
	records stack[kgo.Record]
	bytes   stack[byte]
}

// Limits of what is kept for the next fetches.
const (
	keptSlices  = 64        // number of slices
	keptRecords = 128 << 10 // number of records in all slices
	keptBytes   = 16 << 20  // bytes in all slices
)

// GetRecords implements kgo.PoolRecords.
func (m *pool) GetRecords(n int) []kgo.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records.take(n)
}

// PutRecords implements kgo.PoolRecords.
func (m *pool) PutRecords(s []kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records.put(s, keptRecords)
}

// growth is the factor by which most batches grow at most when they are decompressed. Others are
// reallocated.
const growth = 4

// GetDecompressBytes implements kgo.PoolDecompressBytes.
func (m *pool) GetDecompressBytes(compressed []byte, _ kgo.CompressionCodecType) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes.take(growth * len(compressed))
}

// PutDecompressBytes implements kgo.PoolDecompressBytes.
func (m *pool) PutDecompressBytes(s []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes.put(s, keptBytes)
}

// stack holds unused slices, the most recently used last.
type stack[T any] struct {
	free [][]T // unused slices
	size int   // sum of their capacities
}

// take returns an empty slice with room for n: the most recently used one that is not much too
// large, or a new one.
func (s *stack[T]) take(n int) []T {
	for i := len(s.free) - 1; i >= 0; i-- {
		// A slice that is much too large would waste memory while it is in use.
		if have := s.free[i]; cap(have) >= n && cap(have) <= max(4*n, 64) {
			last := len(s.free) - 1
			s.free[i], s.free[last] = s.free[last], nil
			s.free = s.free[:last]
			s.size -= cap(have)
			return have[:0]
		}
	}
	return make([]T, 0, n)
}

// put adds a slice. To stay within the limits, it drops the least recently used ones.
func (s *stack[T]) put(free []T, most int) {
	if cap(free) == 0 || cap(free) > most {
		return
	}
	s.free = append(s.free, free)
	s.size += cap(free)
	for len(s.free) > keptSlices || s.size > most {
		s.size -= cap(s.free[0])
		s.free = slices.Delete(s.free, 0, 1)
	}
}
