package streams

import (
	"log/slog"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// Of records that are parked one after the other, it is told so often.
const deadLetterLogEvery = 10 * time.Second

// deadLetterLog logs dead letters once per burst, so that thousands of bad records do not fill the log.
type deadLetterLog struct {
	sink   string
	logger *slog.Logger

	mu    sync.Mutex
	count int
	first string // key in DeadLetterTopic, which names partition and offset
	why   string
	told  time.Time
}

func (l *deadLetterLog) add(letters []kafka.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.first, l.why = string(letters[0].Key), reasonOf(letters[0])
	}
	l.count += len(letters)
}

// flush logs what was added since the last time, if that is long enough ago or has to be now.
func (l *deadLetterLog) flush(now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 || !now && time.Since(l.told) < deadLetterLogEvery {
		return
	}
	l.logger.Error("streams: parked records", "sink", l.sink, "records", l.count, "first", l.first, "first_error", l.why, "topic", DeadLetterTopic)
	l.count, l.told = 0, time.Now()
}

func reasonOf(r kafka.Record) string {
	for _, h := range r.Headers {
		if h.Key == HeaderDeadLetterReason {
			return string(h.Value)
		}
	}
	return ""
}
