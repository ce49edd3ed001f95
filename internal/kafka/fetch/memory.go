package fetch

import (
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// memory is where fetched records stand. What the caller is done with takes the next ones: a record
// costs some 250 bytes, which else the garbage collector would run after.
type memory struct {
	mu      sync.Mutex
	records stack[kgo.Record]
	bytes   stack[byte]
}

// What is kept for the next fetches.
const (
	keptSlices  = 64
	keptRecords = 128 << 10
	keptBytes   = 16 << 20
)

// GetRecords implements kgo.PoolRecords.
func (m *memory) GetRecords(n int) []kgo.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records.take(n)
}

// PutRecords implements kgo.PoolRecords.
func (m *memory) PutRecords(s []kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records.put(s, keptRecords)
}

// Most batches have grown to no more than so much when they are decompressed; others grow beyond.
const growth = 4

// GetDecompressBytes implements kgo.PoolDecompressBytes.
func (m *memory) GetDecompressBytes(compressed []byte, _ kgo.CompressionCodecType) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes.take(growth * len(compressed))
}

// PutDecompressBytes implements kgo.PoolDecompressBytes.
func (m *memory) PutDecompressBytes(s []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes.put(s, keptBytes)
}

// stack is slices that nobody uses.
type stack[T any] struct {
	free [][]T
	size int // of all of them
}

// take takes an empty slice with room for n, the last one that has it and is not much too large.
func (s *stack[T]) take(n int) []T {
	for i := len(s.free) - 1; i >= 0; i-- {
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

// put keeps a slice, and for that gives up those that nobody has wanted for longest.
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
