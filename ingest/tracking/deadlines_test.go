package tracking

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestDeadlines checks that each write has its whole time but for what it shares, and that a context ends by
// itself.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d deadlines
		first := d.context(time.Now())
		time.Sleep(shareFor - 1)
		if d.context(time.Now()) != first {
			t.Error("writes of a moment have different contexts")
		}
		time.Sleep(time.Nanosecond)
		second := d.context(time.Now())
		if at, ok := second.Deadline(); second == first || !ok || time.Until(at) != writeTimeout {
			t.Errorf("a later write ends at %s", at)
		}
		time.Sleep(writeTimeout - shareFor)
		if <-first.Done(); second.Err() != nil {
			t.Error("the later context ended with the first one")
		}
		<-second.Done()
	})
}
