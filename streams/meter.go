package streams

import (
	"context"
	"errors"
	"time"

	"github.com/millrace/millrace/internal/registry"
)

// Meter is told what a Runtime does, for metrics. Its methods must not block, and must be safe for
// concurrent use.
type Meter interface {
	// Applied is called for each event that the sink has applied. recorded is when the event was
	// recorded. It is zero if the sink has probably applied the event before.
	Applied(topic string, recorded time.Time)
	// Failed is called for each attempt that failed, with one of the constants Error….
	Failed(class string)
	// DeadLetters is called when records have become dead letters, with one of the constants Reason….
	DeadLetters(reason string, records int)
	// Rebalanced is called when partitions are assigned to the Runtime or revoked from it.
	Rebalanced()
}

// Classes of errors.
const (
	ErrorLost     = "lost"     // the sink lost data, and the log is read again
	ErrorPanic    = "panic"    // the code of the sink
	ErrorRegistry = "registry" // the schema registry is unavailable
	ErrorTimeout  = "timeout"  // the sink, or the topic of dead letters, did not answer in time
	ErrorParked   = "parked"   // too many events are parked
	ErrorSink     = "sink"     // any other error of the sink
)

// Reasons of dead letters.
const (
	ReasonNotAnEvent = "not_an_event" // the record cannot be read, or the relay did not publish it
	ReasonRefused    = "refused"      // the sink cannot apply the event
	ReasonPanic      = "panic"        // the code of the sink panicked at the event
	ReasonGap        = "gap"          // the log lacks an earlier event of the stream
	ReasonBehind     = "behind"       // the event waits behind a parked one
)

// Classes returns the classes of errors.
func Classes() []string {
	return []string{ErrorLost, ErrorPanic, ErrorRegistry, ErrorTimeout, ErrorParked, ErrorSink}
}

// Reasons returns the reasons of dead letters.
func Reasons() []string {
	return []string{ReasonNotAnEvent, ReasonRefused, ReasonPanic, ReasonGap, ReasonBehind}
}

// Measure makes a meter known. It must be called before Run.
func (r *Runtime) Measure(m Meter) { r.meter = m }

// noMeter is the meter of a Runtime that nobody measures.
type noMeter struct{}

func (noMeter) Applied(string, time.Time) {}
func (noMeter) Failed(string)             {}
func (noMeter) DeadLetters(string, int)   {}
func (noMeter) Rebalanced()               {}

// classOf returns the class of an error of an attempt.
func classOf(err error) string {
	panicked := (*panicError)(nil)
	switch {
	case errors.As(err, &panicked):
		return ErrorPanic
	case errors.Is(err, ErrLost):
		return ErrorLost
	case errors.Is(err, registry.ErrUnavailable):
		return ErrorRegistry
	case errors.Is(err, errParkedTooMany):
		return ErrorParked
	case errors.Is(err, context.DeadlineExceeded):
		return ErrorTimeout
	}
	return ErrorSink
}

// reasonClass returns the class of the reason of a dead letter, for an event that the sink got.
func reasonClass(reason error) string {
	panicked, gap := (*panicError)(nil), (*GapError)(nil)
	switch {
	case errors.As(reason, &panicked):
		return ReasonPanic
	case errors.As(reason, &gap):
		return ReasonGap
	case errors.Is(reason, ErrBehind):
		return ReasonBehind
	case errors.Is(reason, errNotSealed):
		return ReasonNotAnEvent
	}
	return ReasonRefused
}

// Topics returns the topics that the Runtime reads.
func (r *Runtime) Topics() []string { return r.cfg.Topics }

// Queued returns how many records wait for the workers.
func (r *Runtime) Queued() (records int) {
	for _, lane := range r.lanes {
		records += len(lane)
	}
	return records
}

// TopicProgress is how far a sink is in a topic, by partition.
type TopicProgress struct {
	Topic string
	Next  map[int32]int64 // the first offset that is not applied
	Ends  map[int32]int64 // the offset behind the last known record
}

// Progress returns how far the sink is in its topics. Topics whose ends are not known yet are left out.
func (r *Runtime) Progress() []TopicProgress { return r.cfg.Watermarks.progress(r.cfg.Topics) }

// Progress returns how far the sink is in its topics. Topics whose ends are not known yet are left out.
func (f *Follower) Progress() []TopicProgress { return f.cfg.Watermarks.progress(f.cfg.Topics) }

// progress returns how far the sink is in topics.
func (w *Watermarks) progress(topics []string) (all []TopicProgress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, topic := range topics {
		t := w.topics[topic]
		if t == nil || !t.complete {
			continue
		}
		p := TopicProgress{topic, map[int32]int64{}, map[int32]int64{}}
		for id, m := range t.partitions {
			p.Next[id], p.Ends[id] = m.applied.Next, m.end
		}
		all = append(all, p)
	}
	return all
}

// measureApplied tells the meter about the events of a batch that the sink has taken. Dead letters
// that were applied again are old, so their age says nothing about the sink.
func (r *Runtime) measureApplied(batch []*item) {
	for _, it := range batch {
		if !it.isEvent() || it.retried != nil && !it.retried.applied {
			continue
		}
		recorded := it.record.Event.RecordedAt
		if it.retried != nil || it.record.Offset < it.partition.measuredFrom {
			recorded = time.Time{}
		}
		r.meter.Applied(it.record.Topic, recorded)
	}
}

// measuredFrom returns the offset from which the ages of a partition's events are measured. If the
// sink reads again what it has lost, or what an earlier assignment has read, the events are old
// because they are read late, not because the sink was late. end is where the log ended.
func (s start) measuredFrom() int64 {
	if s.fresh || s.at.Next < s.saved.Next {
		return s.end
	}
	return 0
}
