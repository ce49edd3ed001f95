package telemetry

import (
	"slices"
	"sync"
	"time"
)

// Lags measures lag in seconds. At each observation it remembers where the partitions of a topic end.
// A sink is behind since the first observation of an end that it has not reached. The age of the
// newest event in the sink would not do: a topic that was quiet for an hour would make every sink an
// hour late at its next event.
//
// A sink that keeps up reaches each end before the next observation, and is 0 behind. The measure is
// as exact as the interval of the observations, and begins at 0 when the process starts. The zero
// value is ready for use, and safe for concurrent use.
type Lags struct {
	mu         sync.Mutex
	partitions map[sinkPartition][]mark
}

// sinkPartition is a partition that a sink reads.
type sinkPartition struct {
	sink, topic string
	partition   int32
}

// mark is an end of a partition, and when it was observed.
type mark struct {
	end int64
	at  time.Time
}

// maxMarks bounds the memory of a partition. A sink that is further behind is measured with half the
// resolution.
const maxMarks = 128

// Observe sets Behind of all readings of the sinks.
func (l *Lags) Observe(now time.Time, sinks []Sink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.partitions == nil {
		l.partitions = map[sinkPartition][]mark{}
	}
	for _, s := range sinks {
		for i := range s.Reads {
			r := &s.Reads[i]
			r.Behind = 0
			for partition, end := range r.Ends {
				p := sinkPartition{s.Name, r.Topic, partition}
				l.partitions[p] = observed(l.partitions[p], now, r.Next[partition], end)
				if marks := l.partitions[p]; len(marks) > 0 {
					r.Behind = max(r.Behind, now.Sub(marks[0].at))
				}
			}
		}
	}
}

// observed returns the marks that a sink has not reached, after one more observation.
func observed(marks []mark, now time.Time, next, end int64) []mark {
	// An end that is beyond the present one belongs to a topic that was deleted.
	marks = slices.DeleteFunc(marks, func(m mark) bool { return m.end <= next || m.end > end })
	if end > next && (len(marks) == 0 || marks[len(marks)-1].end < end) {
		marks = append(marks, mark{end, now})
	}
	if len(marks) > maxMarks {
		kept := marks[:0]
		for i, m := range marks {
			if i%2 == 0 {
				kept = append(kept, m)
			}
		}
		marks = kept
	}
	return marks
}
