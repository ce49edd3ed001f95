package fetch

import "testing"

// Slices are reused if they fit, and no more are kept than the limits allow.
func TestPoolReusesMemory(t *testing.T) {
	t.Parallel()
	var s stack[byte]
	const most = 10_000
	large := make([]byte, 1000)
	s.put(large, most)
	for _, n := range []int{1001, 10} { // too large, and far too small
		if got := s.take(n); cap(got) < n || len(got) != 0 || &got[:1][0] == &large[0] {
			t.Errorf("a slice of %d has room for %d", n, cap(got))
		}
	}
	if got := s.take(900); &got[:1][0] != &large[0] || s.size != 0 {
		t.Error("a slice that fits is not reused")
	}
	for range 3 * keptSlices {
		s.put(make([]byte, 100), most)
	}
	if len(s.free) != keptSlices || s.size != 100*keptSlices {
		t.Errorf("%d slices of %d bytes are kept", len(s.free), s.size)
	}
	s.put(make([]byte, most), most)
	if len(s.free) != 1 || s.size != most {
		t.Errorf("%d slices of %d bytes are kept", len(s.free), s.size)
	}
	if s.put(make([]byte, most+1), most); s.size != most {
		t.Errorf("%d bytes are kept", s.size)
	}
}
