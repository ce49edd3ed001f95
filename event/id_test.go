package event_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
)

func TestNamedID(t *testing.T) {
	t.Parallel()
	at := time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC)
	id := event.NamedID(at, "order/536365")
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		t.Fatalf("%v is of version %d and variant %v", id, id.Version(), id.Variant())
	}
	if got := time.Unix(id.Time().UnixTime()).UTC(); !got.Equal(at) {
		t.Fatalf("%v carries the time %v, want %v", id, got, at)
	}
	if event.NamedID(at, "order/536365") != id {
		t.Fatal("the same name gave another id")
	}
	if event.NamedID(at, "order/536366") == id || event.NamedID(at.Add(time.Millisecond), "order/536365") == id {
		t.Fatal("another name or time gave the same id")
	}
	if early := event.NamedID(at.AddDate(-100, 0, 0), "x"); early != event.NamedID(time.Unix(0, 0), "x") {
		t.Fatalf("a time before 1970 gave %v", early)
	}
}
