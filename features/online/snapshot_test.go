package online_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
)

// filled returns a store with a few facts of both groups, with a wide number, a dropped fact, and two
// entities that are one person.
func filled(t testing.TB) *online.Store {
	t.Helper()
	s, err := online.New([]*features.Group{lasting(), passing()}, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	orders := func(values ...exact.Value) (facts []features.Fact) {
		for i, v := range values {
			facts = append(facts, features.Fact{Entity: "a", Key: strings.Repeat("k", i+1), At: start,
				Values: []exact.Value{v, exact.TextValue("GB"), {}, exact.TextValue("web"), {}}})
		}
		return facts
	}
	var links personstest.Links
	merge := links.Change("customer:a", "customer:old", true, start)
	for _, b := range []online.Batch{
		click(0, "old"),
		{Topic: persons.Source.Topic, After: feed.Position{Next: 1}, Facts: map[string][]features.Fact{persons.Source.Name: merge[:]}},
		{Topic: "orders", Partition: 1, After: feed.Position{Next: 4, AsOf: start},
			Facts: map[string][]features.Fact{"orders": orders(exact.IntValue(exact.FromMoney(1<<60, 1)), exact.IntValue(exact.FromInt64(7)))}},
	} {
		if err := s.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	s.SetTopicID("orders", "an id")
	s.Trim(start.Add(72 * time.Hour))
	return s
}

// TestSnapshotOfOtherDefinitions: a snapshot is used only for the definitions that it was made with.
func TestSnapshotOfOtherDefinitions(t *testing.T) {
	dir := t.TempDir()
	if err := filled(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	changed := passing()
	changed.Features[0].Windows = []features.Window{features.Hour}
	other, err := online.New([]*features.Group{lasting(), changed}, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, why, err := other.Restore(dir); ok || why == nil || err != nil {
		t.Errorf("restored %v, %v, %v: want a reason why not", ok, why, err)
	}
	same := newStore(t)
	if ok, why, err := same.Restore(dir); !ok || err != nil {
		t.Fatalf("not restored: %v, %v", why, err)
	}
	if p := same.Positions("orders")[1]; p.Next != 4 || !p.AsOf.Equal(start) || same.TopicID("orders") != "an id" {
		t.Errorf("restored the position %+v of topic %q", p, same.TopicID("orders"))
	}
}

// TestDamagedSnapshot: wherever a byte is changed or the file ends early, it is noticed, the file is
// set aside, and the store is empty and usable.
func TestDamagedSnapshot(t *testing.T) {
	dir := t.TempDir()
	if err := filled(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "online.snapshot")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	for i := 0; i < len(whole); i += 1 + i/300 { // every byte of the first frames, then fewer
		damaged := bytes.Clone(whole)
		damaged[i] ^= 0x41
		if err := s.Read(bytes.NewReader(damaged), int64(len(damaged))); err == nil {
			t.Fatalf("accepted another byte at %d of %d", i, len(whole))
		}
		if err := s.Read(bytes.NewReader(whole[:i]), int64(i)); err == nil {
			t.Fatalf("accepted %d of %d bytes", i, len(whole))
		}
	}
	if err := os.WriteFile(path, whole[:len(whole)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, why, err := s.Restore(dir); ok || why == nil || err != nil {
		t.Errorf("restored %v, %v, %v: want a reason why not", ok, why, err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Errorf("the damaged file was not set aside: %v", err)
	}
	if ok, why, err := s.Restore(dir); ok || why != nil || err != nil {
		t.Errorf("restored %v, %v, %v: want an empty store", ok, why, err)
	}
	if err := s.Apply(click(0, "a")); err != nil {
		t.Error(err)
	}
}

// TestInterruptedSave: a start removes what a killed save left, and only that.
func TestInterruptedSave(t *testing.T) {
	dir := t.TempDir()
	if err := filled(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	partial, other := filepath.Join(dir, "online.snapshot.partial.123"), filepath.Join(dir, "online.snapshot.damaged")
	for _, path := range []string{partial, other} {
		if err := os.WriteFile(path, []byte("a part"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ok, why, err := newStore(t).Restore(dir); !ok || why != nil || err != nil {
		t.Errorf("restored %v, %v, %v", ok, why, err)
	}
	if _, err := os.Stat(partial); !os.IsNotExist(err) {
		t.Errorf("the partial file is still there: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// FuzzSnapshot: whatever the frames of a snapshot contain, reading it fails or gives a store that
// answers. Checksums are right, or hardly anything but them would be tested.
func FuzzSnapshot(f *testing.F) {
	var file bytes.Buffer
	if err := filled(f).Write(&file); err != nil {
		f.Fatal(err)
	}
	whole := file.Bytes()
	start := whole[:bytes.IndexByte(whole, '\n')+1]
	type frame struct {
		kind    byte
		content []byte
	}
	var frames []frame
	for b := whole[len(start):]; len(b) > 0; {
		n := 9 + binary.LittleEndian.Uint64(b[1:])
		frames = append(frames, frame{b[0], b[9:n]})
		b = b[n+8:]
	}
	for i, frame := range frames {
		f.Add(i, frame.content)
	}
	f.Fuzz(func(t *testing.T, n int, content []byte) {
		damaged := bytes.NewBuffer(bytes.Clone(start))
		for i, frame := range frames {
			if i == n {
				frame.content = content
			}
			if err := online.WriteFrame(damaged, frame.kind, frame.content); err != nil {
				t.Fatal(err)
			}
		}
		s := newStore(t)
		if s.Read(damaged, int64(damaged.Len())) != nil {
			return
		}
		for _, g := range s.Groups() {
			q, err := s.Compile(g.Name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Lookup(t.Context(), q, []string{"a", "old"}, time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), nil)
			if err != nil && !errors.Is(err, online.ErrTooOld) {
				t.Fatal(err)
			}
		}
	})
}
