package fetch_test

import (
	"math"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/test/servers/kafka"
)

// The client's arithmetic overflows for these numbers: it returns dates in 2047, 1969, 1970 and
// others that were not written.
func TestTimestampsMatchBroker(t *testing.T) {
	t.Parallel()
	stamps := []int64{
		1_718_000_000_123,            // as they should be
		1_718_000_000_123_456,        // microseconds
		1_718_000_000_123_456_789,    // nanoseconds
		1_718_000_000,                // seconds
		math.MaxInt64, math.MinInt64, // extreme values
		-1, 0, 1, -1_000_000_000_000, // none; 1970; before
		1 << 58, 1 << 62, -(1 << 58), // these overflow to zero
		253_402_300_800_000,                                 // the year 10000
		9_223_372_036_854, 4102444800000, 9_223_372_036_855, // the last that nanoseconds hold, and the next
	}
	w := newWorld(t, kafka.Embedded(t), 1) // Apache Kafka refuses most of these by default
	var values []fetchtest.Stamped
	for _, at := range stamps {
		values = append(values, fetchtest.Stamped{Millis: at, Value: []byte("v")})
	}
	// First each value in its own batch, then all in one.
	for _, v := range values {
		if err := w.Stamp(t.Context(), w.topic, 0, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Stamp(t.Context(), w.topic, 0, values...); err != nil {
		t.Fatal(err)
	}
	r := w.open(map[int32]int64{0: 0})
	deadline := time.Now().Add(time.Minute)
	n := 0
	for n < 2*len(stamps) && time.Now().Before(deadline) {
		batches, err := r.Poll(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for record := range b.Records() {
				if want := stamps[n%len(stamps)]; record.Millis != want {
					t.Errorf("record %d was written at %d, and read at %d", record.Offset, want, record.Millis)
				}
				n++
			}
		}
	}
	if n != 2*len(stamps) {
		t.Fatalf("read %d records of %d", n, 2*len(stamps))
	}
}
