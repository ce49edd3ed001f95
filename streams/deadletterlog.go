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
	count    int            // dead letters since the last line
	first    string         // key of the first of them in DeadLetterTopic, which names partition and offset
	reasons  map[string]int // how many have which class of reason
	loggedAt time.Time      // when the last line was logged
}

// add counts dead letters that are on the topic, and their classes of reasons. The reasons themselves
// are not logged, because they can quote the records.
func (l *deadLetterLog) add(letters []kafka.Record, reasons map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.first, l.reasons = string(letters[0].Key), map[string]int{}
	}
	l.count += len(letters)
	for class, n := range reasons {
		l.reasons[class] += n
	}
}

// flush logs the dead letters since the last line, but not more often than deadLetterLogEvery
// unless now is set.
func (l *deadLetterLog) flush(now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 || !now && time.Since(l.loggedAt) < deadLetterLogEvery {
		return
	}
	l.logger.Error("streams: records became dead letters; `millrace dlq` shows them", "sink", l.sink,
		"records", l.count, "reasons", l.reasons, "first", l.first, "topic", DeadLetterTopic)
	l.count, l.loggedAt = 0, time.Now()
}
