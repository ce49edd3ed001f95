package streams

import (
	"log/slog"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// Of records that are parked one after the other, it is told so often.
const tellEvery = 10 * time.Second

// parkLog logs parked records once per burst, so that thousands of bad records do not fill the log.
type parkLog struct {
	sink   string
	logger *slog.Logger

	mu    sync.Mutex
	count int
	first string // key in ParkTopic, which names partition and offset
	why   string
	told  time.Time
}

func (l *parkLog) add(park []kafka.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.first, l.why = string(park[0].Key), reasonOf(park[0])
	}
	l.count += len(park)
}

// tell logs what was added since the last time, if that is long enough ago or has to be now.
func (l *parkLog) tell(now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 || !now && time.Since(l.told) < tellEvery {
		return
	}
	l.logger.Error("streams: parked records", "sink", l.sink, "records", l.count, "first", l.first, "first_error", l.why, "topic", ParkTopic)
	l.count, l.told = 0, time.Now()
}

func reasonOf(r kafka.Record) string {
	for _, h := range r.Headers {
		if h.Key == HeaderParkReason {
			return string(h.Value)
		}
	}
	return ""
}
