package streams

import (
	"log/slog"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// deadLetterLogEvery is how often dead letters are logged while they keep coming.
const deadLetterLogEvery = 10 * time.Second

// deadLetterLog logs dead letters once per burst, so that thousands of bad records do not flood the
// log of the process.
type deadLetterLog struct {
	sink   string
	logger *slog.Logger

	// mu protects the fields below. All workers add dead letters.
	mu       sync.Mutex
	count    int       // dead letters since the last line
	first    string    // key of the first of them in DeadLetterTopic, which names partition and offset
	reason   string    // reason of the first
	loggedAt time.Time // when the last line was logged
}

// add counts dead letters that are on the topic.
func (l *deadLetterLog) add(letters []kafka.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.first, l.reason = string(letters[0].Key), reasonOf(letters[0])
	}
	l.count += len(letters)
}

// flush logs the dead letters since the last line, but not more often than deadLetterLogEvery
// unless now is set.
func (l *deadLetterLog) flush(now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 || !now && time.Since(l.loggedAt) < deadLetterLogEvery {
		return
	}
	l.logger.Error("streams: records became dead letters", "sink", l.sink, "records", l.count,
		"first", l.first, "first_error", l.reason, "topic", DeadLetterTopic)
	l.count, l.loggedAt = 0, time.Now()
}

// reasonOf returns the reason in a dead letter's headers.
func reasonOf(r kafka.Record) string {
	for _, h := range r.Headers {
		if h.Key == HeaderDeadLetterReason {
			return string(h.Value)
		}
	}
	return ""
}
