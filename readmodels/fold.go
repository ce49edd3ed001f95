// Package readmodels holds what every view does alike: folding events into documents by version, summing documents for
// verification, and keeping a query's promises about tokens, deadlines and freshness. Each view has its own package
// below.
package readmodels

import (
	"errors"
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/streams"
)

// Document is what a view keeps of one stream.
type Document interface {
	comparable
	proto.Message
	GetVersion() uint64 // of the stream's last event that it shows
}

// Project is a view's pure heart: the document that an event makes of a document, which is nil before the first event.
// The result has the event's version. Where the event's data cannot be read there is an error and no result. The
// document that was passed in is not changed.
type Project[D Document] func(document D, e event.Event) (D, error)

// Fold applies records to the documents of their streams, which it looks up and puts back in docs, and returns the
// streams whose document changed. A record that a document shows already is passed over, and so is one that cannot be
// read: its version is not taken, for the event that the store has acknowledged under it may come later. Errors are
// those of streams.Sink: a *streams.GapError, after which docs must not be used, or a *streams.UnreadableError, after
// which all else has been folded.
func Fold[D Document](docs map[string]D, records []streams.Record, project Project[D]) (changed map[string]bool, err error) {
	var none D
	var unreadable streams.UnreadableError
	changed = map[string]bool{}
	for _, r := range records {
		doc, stream := docs[r.Event.Stream], r.Event.Stream
		var have uint64
		if doc != none {
			have = doc.GetVersion()
		}
		next, bad := project(doc, r.Event) // first, so that what was unreadable is so again, and is not a gap
		switch {
		case bad != nil:
			unreadable.Records = append(unreadable.Records, r)
			unreadable.Reasons = append(unreadable.Reasons, bad)
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

// Streams lists the streams of records, each once.
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

// Expected is the digest that a view has once it has applied the events, which come in order per stream. What the view
// would park is passed over here, too: an event that cannot be read, and those behind it in its stream. Any other gap
// is the reader's fault.
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

// AddDocument adds a document to a digest.
func AddDocument(d *digest.Digest, stream string, doc proto.Message) error {
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(doc)
	if err != nil {
		return fmt.Errorf("marshal document %q: %w", stream, err)
	}
	d.Add(stream, content)
	return nil
}
