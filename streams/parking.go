package streams

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// maxParked is how many events of one sink may be parked in one partition. If there are more, the
// sink is broken and not the events. It then retries instead of parking further ones.
const maxParked = 100_000

// errParkedTooMany is retried: a corrected program can continue where this one stopped.
var errParkedTooMany = errors.New("too many parked events: the sink or its code is probably broken, not the events")

// ErrBehind is the reason of an event that waits because an earlier event of its stream is parked.
var ErrBehind = errors.New("an earlier event of this stream is parked")

// parking has the streams of one partition with an event that the sink could not apply. The first
// offset of a stream is that event. Later events of the stream wait behind it, so that they are
// applied in order once the first one is. All of them are dead letters; this is their index.
//
// The poll loop creates it from the dead letters. Afterwards only the worker of a stream's lane
// changes that stream.
type parking struct {
	mu      sync.Mutex
	streams map[string][]int64 // offsets in increasing order; never empty
	events  int
}

// parkingOf returns the index of dead letters, whose offsets are in any order.
func parkingOf(streams map[string][]int64) *parking {
	k := &parking{streams: streams}
	if streams == nil {
		k.streams = map[string][]int64{}
	}
	for _, offsets := range streams {
		slices.Sort(offsets)
		k.events += len(offsets)
	}
	return k
}

// waits reports whether an event of a stream has to wait behind another one, when the caller is
// about to apply the first ahead parked events of the stream. first reports whether it is the next
// of them.
func (k *parking) waits(stream string, offset int64, ahead int) (behind int64, waits, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	offsets := k.streams[stream]
	if ahead >= len(offsets) || offset < offsets[ahead] { // the latter is read again
		return 0, false, false
	}
	return offsets[ahead], offset > offsets[ahead], offset == offsets[ahead]
}

// park adds an event.
func (k *parking) park(stream string, offset int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, known := slices.BinarySearch(k.streams[stream], offset)
	if !known {
		k.streams[stream] = slices.Insert(k.streams[stream], at, offset)
		k.events++
	}
}

// release removes an event that was applied, or whose dead letter was deleted.
func (k *parking) release(stream string, offset int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, known := slices.BinarySearch(k.streams[stream], offset)
	if !known {
		return
	}
	k.events--
	if k.streams[stream] = slices.Delete(k.streams[stream], at, at+1); len(k.streams[stream]) == 0 {
		delete(k.streams, stream)
	}
}

// full returns an error if no more events can be parked.
func (k *parking) full() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.events < maxParked {
		return nil
	}
	return fmt.Errorf("%d events are parked in one partition: %w", k.events, errParkedTooMany)
}

// size returns the number of parked streams and events.
func (k *parking) size() (streams, events int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.streams), k.events
}

// next returns the first most parked offsets of each stream.
func (k *parking) next(most int) map[string][]int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := make(map[string][]int64, len(k.streams))
	for stream, offsets := range k.streams {
		next[stream] = slices.Clone(offsets[:min(most, len(offsets))])
	}
	return next
}
