package streams

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// Thousands of dead letters are logged in a line now and then, with their number and the first one
// of them, and their classes of reasons.
func TestDeadLettersAreLoggedOncePerBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := deadLetterLog{sink: "view", logger: slog.New(slog.NewTextHandler(&out, nil))}
		l.flush(true) // no effect
		for i := range 15_000 {
			l.add([]kafka.Record{{Key: fmt.Appendf(nil, "view|topic|0|%d", i), Headers: []event.Header{{
				Key: HeaderDeadLetterReason, Value: []byte("key ada@example.com")}}}}, map[string]int{ReasonRefused: 1})
			l.flush(false)
			time.Sleep(time.Millisecond)
		}
		l.flush(true)
		l.flush(true)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 3 { // the first immediately, those of ten seconds, and the rest
			t.Errorf("%d lines: %s", len(lines), out.String())
		}
		if strings.Contains(out.String(), "ada@example.com") {
			t.Errorf("the log quotes a record: %s", out.String())
		}
		for i, want := range []string{"records=1 reasons=map[refused:1] first=view|topic|0|0 ",
			"records=10000 reasons=map[refused:10000] first=view|topic|0|1 ",
			"records=4999 reasons=map[refused:4999] first=view|topic|0|10001 "} {
			if i < len(lines) && !strings.Contains(lines[i], want) {
				t.Errorf("line %d: %s, want %s", i, lines[i], want)
			}
		}
	})
}
