package landing

import (
	"errors"
	"time"

	"github.com/millrace/millrace/lake/faults"
)

// Meter is told what landers do, for metrics. Its methods must not block, and must be safe for
// concurrent use.
type Meter interface {
	// Landed is called when events have become visible in a table. recorded is when they were
	// recorded, within measureTick. It is zero for events that were on the topic before the table
	// began.
	Landed(table, topic string, recorded time.Time, events uint64)
	// Committed is called for each commit with the time that it took, from the last files of the
	// batch to the answer of the catalog, with all attempts.
	Committed(table string, took time.Duration)
	// Catalog is called for each request to the catalog: "load" or "commit".
	Catalog(operation string, took time.Duration)
	// Failed is called for each error that ends a session, with one of the constants Error….
	Failed(table, class string)
}

// Classes of errors that end a session of a lander.
const (
	ErrorTemporary = "temporary" // a server or the network
	ErrorFenced    = "fenced"    // another lander has landed the batch
	ErrorRecord    = "record"    // records that cannot be written, which are looked for
	ErrorTable     = "table"     // the table cannot be landed
	ErrorOther     = "other"     // an unclassified error of the catalog or of the storage
)

// Classes returns the classes of errors.
func Classes() []string {
	return []string{ErrorTemporary, ErrorFenced, ErrorRecord, ErrorTable, ErrorOther}
}

// classOf returns the class of an error of a table's lander.
func classOf(table string, err error) string {
	switch {
	case errors.Is(err, errFenced):
		return ErrorFenced
	case faults.IsRowsError(err):
		return ErrorRecord
	case faults.Of(table, err) != nil:
		return ErrorTable
	case faults.IsTemporary(err):
		return ErrorTemporary
	}
	return ErrorOther
}

// noMeter is the meter of a landing that nobody measures.
type noMeter struct{}

func (noMeter) Landed(string, string, time.Time, uint64) {}
func (noMeter) Committed(string, time.Duration)          {}
func (noMeter) Catalog(string, time.Duration)            {}
func (noMeter) Failed(string, string)                    {}

const (
	// measureTick is the resolution of the times at which the events of a batch were recorded.
	measureTick = 50 * time.Millisecond
	// maxRecordings bounds the memory of these times. A batch with more of them, which only a lander that
	// is far behind has, counts the rest as the last one.
	maxRecordings = 4096
)

// recordings are the times at which the events of a batch were recorded. Events that follow each other on
// the log were recorded at nearly the same time, so there are few runs.
type recordings []recording

// recording is a run of events that were recorded within measureTick.
type recording struct {
	recorded time.Time
	events   uint64
}

// add adds an event.
func (a *recordings) add(recorded time.Time) {
	if n := len(*a); n > 0 {
		last := &(*a)[n-1]
		if n == maxRecordings || recorded.Sub(last.recorded).Abs() < measureTick {
			last.events++
			return
		}
	}
	*a = append(*a, recording{recorded, 1})
}

// meter returns the configured meter.
func (l *lander) meter() Meter {
	if l.config.Meter == nil {
		return noMeter{}
	}
	return l.config.Meter
}

// measureLanded tells the meter about a batch that is in the table.
func (l *lander) measureLanded(b *batch) {
	for _, run := range b.recorded {
		l.meter().Landed(l.table.Name, l.table.Topic, run.recorded, run.events)
	}
}
