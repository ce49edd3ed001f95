package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/tracing"
)

// errNotSealed is the reason for which a dead letter is not applied.
var errNotSealed = errors.New("the relay did not publish this event: its dead letter may be forged")

// attempt is one attempt to pass a batch to the sink.
type attempt struct {
	r       *Runtime
	records []Record
	items   []*item        // those of records
	letters []kafka.Record // dead letters to write, and deletions of those whose event was applied

	// Changes of parked streams, for the time when letters are on their topic.
	parks, releases []*item
	// parked are the streams of events that are parked by this batch. ahead is the number of parked
	// events of a stream that records has.
	parked map[streamOf]bool
	ahead  map[streamOf]int

	reasons map[string]int // of the dead letters, by class; nil if there are none
}

// attempt passes a batch to the sink once, and writes its dead letters.
func (r *Runtime) attempt(batch []*item) (err error) {
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	a := attempt{r: r, parked: map[streamOf]bool{}, ahead: map[streamOf]int{}}
	if span := r.tracer.Batch(tracing.Hop{Name: "apply", Sink: r.cfg.Name}); span != nil {
		defer func() { a.trace(span, batch, err) }()
	}
	// Complete the items first: one of them may turn out to be unreadable.
	for _, it := range batch {
		if err := r.read(ctx, it); err != nil {
			return err
		}
		a.add(it)
	}
	if err := a.apply(ctx); err != nil {
		return err
	}
	// The positions move over dead letters only after they are on their topic.
	return a.write(ctx)
}

// errParked marks the spans of events that the sink did not apply.
var errParked = errors.New("the event is a dead letter")

// trace records what became of a batch.
func (a *attempt) trace(span *tracing.Batch, batch []*item, err error) {
	for _, it := range batch {
		entry := tracing.Of(&it.record.Event, it.record.Partition, it.record.Offset)
		if it.refused {
			entry.Failed = errParked
		}
		span.Add(entry)
	}
	span.End(err)
}

// add decides what becomes of an item: it is applied, waits behind a parked event, or is a dead
// letter already.
func (a *attempt) add(it *item) {
	it.refused = false // it may have been in an earlier attempt
	switch {
	case it.deadLetter != nil:
		a.park(it, it.deadLetter, nil)
		return
	case it.retried != nil && !it.sealed:
		a.refuse(it, errNotSealed)
		return
	}
	stream := it.stream()
	behind, waits, first := it.partition.parking.waits(stream.name, it.record.Offset, a.ahead[stream])
	switch {
	case it.retried != nil && !first: // it was applied or parked again since it was read
		return
	case waits:
		a.wait(it, fmt.Errorf("%w, at offset %d", ErrBehind, behind))
		return
	case a.parked[stream]:
		a.wait(it, ErrBehind)
		return
	case first:
		a.ahead[stream]++
		a.releases = append(a.releases, it)
	}
	a.records, a.items = append(a.records, it.record), append(a.items, it)
}

// apply passes the records to the sink. Those that it cannot apply are parked.
func (a *attempt) apply(ctx context.Context) error {
	if len(a.records) == 0 {
		return nil
	}
	err := a.r.apply(ctx, a.records)
	var unreadable *UnreadableError
	var panicked *panicError
	var gap *GapError
	switch {
	case err == nil:
	case errors.As(err, &unreadable):
		for i, rec := range unreadable.Records {
			it := findItem(a.items, rec)
			if it == nil {
				return fmt.Errorf("the sink refused a record that it did not get: offset %d of partition %d of %s: %w",
					rec.Offset, rec.Partition, rec.Topic, unreadable.Reasons[i])
			}
			a.refuse(it, unreadable.Reasons[i])
		}
	case errors.As(err, &panicked) && len(a.items) == 1:
		a.refuse(a.items[0], panicked)
	// Nothing will complete the stream while the event before this one is missing.
	case errors.As(err, &gap) && a.items[0].retried != nil:
		a.refuse(a.items[0], gap)
	default:
		return err
	}
	return nil
}

// refuse parks an item that the sink could not apply, or lets it wait behind one.
func (a *attempt) refuse(it *item, reason error) {
	if errors.Is(reason, ErrBehind) && it.sealed {
		a.wait(it, reason)
		return
	}
	a.park(it, a.r.deadLetterOf(it, reason), reason)
}

// park writes an item's dead letter, and parks its stream. A record that the relay did not publish
// parks nothing: it may be forged, and the event of the store may follow.
func (a *attempt) park(it *item, letter *kafka.Record, reason error) {
	a.count(it, reason)
	if !it.sealed && it.retried == nil {
		it.refused = true
		a.letters = append(a.letters, *letter)
		return
	}
	attempts := 1
	if it.retried != nil {
		attempts += it.retried.attempts
		it.retried.failed = true
	}
	it.refused = true
	a.letters = append(a.letters, parkedLetter(*letter, it.partition.topicID(), attempts, reason))
	a.parks = append(a.parks, it)
	a.parked[it.stream()] = true
}

// count counts a dead letter by its reason. A dead letter that is written again after a further attempt
// is not a new one.
func (a *attempt) count(it *item, reason error) {
	if it.retried != nil {
		return
	}
	class := cmp.Or(it.reason, ReasonNotAnEvent)
	if reason != nil {
		class = reasonClass(reason)
	}
	if a.reasons == nil {
		a.reasons = map[string]int{}
	}
	a.reasons[class]++
}

// wait writes the dead letter of an event that waits behind a parked one.
func (a *attempt) wait(it *item, reason error) {
	a.count(it, reason)
	it.refused = true
	letter := a.r.deadLetterOf(it, reason)
	if !it.sealed {
		a.letters = append(a.letters, *letter)
		return
	}
	a.letters = append(a.letters, parkedLetter(*letter, it.partition.topicID(), 0, nil))
	a.parks = append(a.parks, it)
}

// write writes the dead letters, deletes those whose event was applied, and updates the index.
func (a *attempt) write(ctx context.Context) error {
	dead := len(a.letters)
	for _, it := range a.parks {
		if err := it.partition.parking.full(); err != nil {
			return err
		}
	}
	for _, it := range a.releases {
		if !it.refused {
			a.letters = append(a.letters, deletion(a.r.cfg.Name, it.record))
		}
	}
	if len(a.letters) == 0 {
		return nil
	}
	if err := a.put(ctx); err != nil {
		return err
	}
	for _, it := range a.parks {
		it.partition.parking.park(it.record.Event.Stream, it.record.Offset)
	}
	for _, it := range a.releases {
		if !it.refused {
			it.partition.parking.release(it.record.Event.Stream, it.record.Offset)
			if it.retried != nil {
				it.retried.applied = true
			}
		}
	}
	if dead > 0 {
		a.r.deadLetterLog.add(a.letters[:dead], a.reasons)
		for class, n := range a.reasons {
			a.r.meter.DeadLetters(class, n)
		}
	}
	return nil
}

// put writes the letters, between two failpoints if events are released.
func (a *attempt) put(ctx context.Context) error {
	point := "view." + a.r.cfg.Name + ".release."
	if len(a.releases) > 0 {
		if err := failpoint.Hit(point + "before"); err != nil {
			return err
		}
	}
	if err := a.r.deadLetters.put(ctx, a.letters); err != nil || len(a.releases) == 0 {
		return err
	}
	return failpoint.Hit(point + "after")
}

// panicError is a panic of a sink.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// Recovered sets err if the function that defers it panics. A panic is a mistake of the code that one
// event brings up. It must not end the process, which would panic again after each restart.
func Recovered(err *error) {
	if value := recover(); value != nil {
		*err = &panicError{value, debug.Stack()}
	}
}
