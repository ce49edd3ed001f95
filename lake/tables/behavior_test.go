package tables_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

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
