// Package readmodels is the part that all views share.
//
// A view is a projection: Project computes a stream's next document from the previous one and an
// event. It is pure. Fold applies a batch of records with it, and Expected computes from the events
// alone what a view should contain, for verification. Freshness implements the promises of queries:
// read your own writes by token, deadlines, and how fresh an answer is. Each view is a package
// below this one, and implements streams.Sink on its own storage.
//
// The invariant is that a document's version is that of the last event it shows, and versions of a
// stream have no gaps. So a redelivered record changes nothing, and a missing one is noticed.
package readmodels

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/streams"
)

// Document is what a view stores of one stream.
type Document interface {
	comparable
	proto.Message
	GetVersion() uint64 // of the stream's last event that the document shows
}

// Project returns the document that results from applying an event to a document, which is nil
// before the first event. The result has the event's version. If the event's data cannot be read,
// it returns an error and no result. It does not change the document that it receives.
type Project[D Document] func(document D, e event.Event) (D, error)

// Fold applies records to the documents of their streams, and returns the streams whose document
// has changed. It reads documents from docs and stores the new ones there.
//
// A record that a document already shows is skipped. A record that cannot be read is skipped as
// well, without taking its version: the event that the store acknowledged under this version may
// still follow.
//
// Errors are those of streams.Sink: after a *streams.GapError, docs must not be used; after a
// *streams.UnreadableError, all other records have been folded.
func Fold[D Document](
	docs map[string]D, records []streams.Record, project Project[D],
) (changed map[string]bool, err error) {
	var none D
	var unreadable streams.UnreadableError
	changed = map[string]bool{}
	for _, r := range records {
		doc, stream := docs[r.Event.Stream], r.Event.Stream
		var have uint64
		if doc != none {
			have = doc.GetVersion()
		}
		// Project first: a record that was unreadable before must be reported as unreadable again,
		// and not as a gap.
		next, bad := try(project, doc, r.Event)
		switch {
		case bad != nil:
			unreadable.Add(r, bad)
		case r.Event.Version > have+1 && unreadable.Behind(r):
		case r.Event.Version > have+1:
			return nil, &streams.GapError{Record: r, Have: have}
		case r.Event.Version > have || failpoint.On("view.noguard"):
			docs[stream], changed[stream] = next, true
		}
	}
	if len(unreadable.Records) > 0 {
		return changed, &unreadable
	}
	return changed, nil
}

// try calls project. A panic is an error of the event: verification must not end the process, and the
// other events of a batch can be applied.
func try[D Document](project Project[D], doc D, e event.Event) (next D, err error) {
	defer streams.Recovered(&err)
	if failpoint.On("view.poison") && strings.HasSuffix(e.Stream, "0") {
		panic("view.poison")
	}
	return project(doc, e)
}

// Streams returns the streams of the records, each once, in order of appearance.
func Streams(records []streams.Record) []string {
	seen := make(map[string]bool, len(records))
	var ids []string
	for _, r := range records {
		if !seen[r.Event.Stream] {
			seen[r.Event.Stream] = true
			ids = append(ids, r.Event.Stream)
		}
	}
	return ids
}

// Expected returns the digest of a view that has applied the events, which come in order per
// stream. It skips what the view would turn into dead letters: an event that cannot be read, and
// those after it in its stream. Any other gap is an error of the reader.
func Expected[D Document](events iter.Seq2[event.Event, error], project Project[D]) (*digest.Digest, error) {
	docs, broken := map[string]D{}, map[string]bool{}
	for e, err := range events {
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		if broken[e.Stream] {
			continue
		}
		var unreadable *streams.UnreadableError
		if _, err := Fold(docs, []streams.Record{{Event: e}}, project); errors.As(err, &unreadable) {
			broken[e.Stream] = true
		} else if err != nil {
			return nil, fmt.Errorf("fold events: %w", err)
		}
	}
	d := digest.New()
	for stream, doc := range docs {
		if err := AddDocument(d, stream, doc); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// AddDocument adds a document to a digest. The encoding is deterministic, so equal documents have
// equal digests.
func AddDocument(d *digest.Digest, stream string, doc proto.Message) error {
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(doc)
	if err != nil {
		return fmt.Errorf("marshal document %q: %w", stream, err)
	}
	d.Add(stream, content)
	return nil
}
