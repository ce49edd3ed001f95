package tables_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/tables"
)

// TestBehaviorRows checks that an event becomes a row with all of its fields, and that other records
// become none.
func TestBehaviorRows(t *testing.T) {
	t.Parallel()
	columns, err := columnar.New(columnar.WithIDs(tables.BehaviorEvents.AllColumns()))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := tables.BehaviorEvents.Rows(columns, nil)
	if err != nil {
		t.Fatal(err)
	}
	received := time.Unix(1_700_000_001, 0).UTC()
	e, err := behavior.Envelope(&behaviorv1.BehaviorEvent{
		MessageId: "m1", Type: behavior.Page, Name: "Home", UserId: "u1", Source: "web",
		Timestamp: timestamppb.New(time.Unix(1_700_000_000, 0)), ReceivedAt: timestamppb.New(received),
		Properties: `{"path":"/"}`, Consent: map[string]bool{"analytics": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	record := declare.Record{Topic: event.Behavior.Topic, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers()}
	for name, c := range map[string]struct {
		change func(*declare.Record)
		rows   int
	}{
		"an event":     {func(*declare.Record) {}, 1},
		"of another":   {func(r *declare.Record) { r.Key = []byte("u2") }, 0},
		"no event":     {func(r *declare.Record) { r.Headers = nil }, 0},
		"another's id": {func(r *declare.Record) { r.Value = append([]byte{0x0a, 1, 'x'}, r.Value[4:]...) }, 0},
	} {
		r := record
		c.change(&r)
		mark := columns.Column(0).Len()
		appended, err := rows.Append(t.Context(), r)
		if added := columns.Column(0).Len() - mark; added != c.rows || appended.Rows != c.rows {
			t.Errorf("%s: %d rows, %+v, %v", name, added, appended, err)
		}
		if c.rows == 0 && !errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%s: %v", name, err)
		}
		if c.rows == 1 && !appended.AsOf.Equal(received) {
			t.Errorf("%s: as of %v", name, appended.AsOf)
		}
	}
	for i, f := range columns.Fields() {
		want := map[string]string{
			"event_id": e.ID.String(), "type": "page", "user_id": "u1", "properties": `{"path":"/"}`, "source": "web",
		}[f.Name]
		if text, is := columns.Column(i).(*columnar.Bytes); is && want != "" && string(text.Value(0)) != want {
			t.Errorf("%s is %q, want %q", f.Name, text.Value(0), want)
		}
	}
}

// TestBehaviorIsRestored: the event of a row is the one that was landed, whatever its fields are.
func TestBehaviorIsRestored(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		text, json := rapid.String(), rapid.SampledFrom([]string{"", `{}`, `{"sku": "MUG"}`})
		stamp := rapid.Custom(func(r *rapid.T) *timestamppb.Timestamp {
			return timestamppb.New(time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(r, "time")))
		})
		maybe := func(name string) *timestamppb.Timestamp {
			if rapid.Bool().Draw(r, name+" is absent") {
				return nil
			}
			return stamp.Draw(r, name)
		}
		m := &behaviorv1.BehaviorEvent{
			MessageId: text.Draw(r, "message_id") + "m", Type: behavior.Track, Event: text.Draw(r, "event"), Name: text.Draw(r, "name"),
			Category: text.Draw(r, "category"), UserId: text.Draw(r, "user_id"), AnonymousId: text.Draw(r, "anonymous_id") + "a",
			GroupId: text.Draw(r, "group_id"), PreviousId: text.Draw(r, "previous_id"), Timestamp: stamp.Draw(r, "timestamp"),
			OriginalTimestamp: maybe("original_timestamp"), SentAt: maybe("sent_at"), ReceivedAt: stamp.Draw(r, "received_at"),
			Properties: json.Draw(r, "properties"), Traits: json.Draw(r, "traits"), Context: json.Draw(r, "context"),
			Source: text.Draw(r, "source") + "s", Consent: rapid.MapOf(text, rapid.Bool()).Draw(r, "consent"),
			ReducedFor: rapid.SliceOf(text).Draw(r, "reduced_for"),
		}
		m.ProtoReflect().SetUnknown(protoreflect.RawFields(rapid.SampledFrom([]string{"", "\xfa\x3e\x01x"}).Draw(r, "unknown")))
		e, err := behavior.Envelope(m)
		if err != nil {
			r.Skip(err) // such as a text that is not valid
		}
		columns, err := columnar.New(columnar.WithIDs(tables.BehaviorEvents.AllColumns()))
		if err != nil {
			t.Fatal(err)
		}
		rows, err := tables.BehaviorEvents.Rows(columns, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rows.Append(t.Context(), declare.Record{
			Topic: event.Behavior.Topic, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers(),
		}); err != nil {
			r.Fatal(err)
		}
		n := len(columns.Fields())
		columns.Column(n - 3).(*columnar.Bytes).AppendString(event.Behavior.Topic)
		columns.Column(n - 2).(*columnar.Int32s).Append(1)
		columns.Column(n - 1).(*columnar.Int64s).Append(2)
		rec := columns.Record()
		defer rec.Release()
		events, err := tables.BehaviorEvents.Restore.Events(rec)
		if err != nil {
			r.Fatal(err)
		}
		count := 0
		for back, err := range events {
			if err != nil {
				r.Fatal(err)
			}
			have, err := behavior.Decode(back)
			if err != nil || !proto.Equal(have, m) {
				r.Fatalf("%v, %v; want %v", have, err, m)
			}
			back.Data = e.Data // the order of fields may differ
			if !reflect.DeepEqual(back, e) {
				r.Fatalf("%+v; want %+v", back, e)
			}
			count++
		}
		if count != 1 {
			r.Fatalf("%d events of a row", count)
		}
	})
}
