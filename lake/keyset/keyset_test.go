package keyset

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// A filter knows every key that was added, and few others.
func TestKeyFilter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := New(0, nil)
		keys := rapid.SliceOfN(rapid.String(), 0, 200).Draw(t, "keys")
		for _, k := range keys {
			f.Add(k)
		}
		for _, k := range keys {
			if !f.MayContain(k) {
				t.Fatalf("%q was added", k)
			}
		}
	})
	f := New(minCapacity/2, nil)
	for i := range minCapacity {
		f.Add(fmt.Sprint("key ", i))
	}
	wrong := 0
	for i := range 100_000 {
		if f.MayContain(fmt.Sprint("another ", i)) {
			wrong++
		}
	}
	if wrong > 2000 {
		t.Errorf("a full filter takes %d of 100000 other keys for known", wrong)
	}
}

// A filter only claims completeness up to the offsets that it was given.
func TestKeyFilterCoverage(t *testing.T) {
	t.Parallel()
	f := New(0, map[int32]int64{1: 7})
	for _, c := range []struct {
		partition int32
		upTo      int64
		want      bool
	}{{1, 7, true}, {1, 8, false}, {1, 6, false}, {2, 0, true}, {2, 1, false}} {
		if got := f.Covers(c.partition, c.upTo); got != c.want {
			t.Errorf("partition %d up to %d: %v", c.partition, c.upTo, got)
		}
	}
	f.keys = f.capacity + 1
	if f.Covers(1, 7) {
		t.Error("it is full, and a larger one could be made")
	}
	if (*Filter)(nil).Covers(2, 0) {
		t.Error("none knows nothing")
	}
}
